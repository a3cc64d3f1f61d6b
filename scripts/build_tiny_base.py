"""Build the tiny base model that ships with ttrl, from nothing, in a few minutes on a CPU.

    python scripts/build_tiny_base.py OUTPUT_FOLDER

The model learns worked additions in which columns are wrong with the probabilities `SLIPS`
(`ttrl.data.arithmetic`), so that it answers as a base language model does: with the right method
and with mistakes. On the hardest level it slips so often that even its majority is often wrong.
The questions that ttrl trains and measures on are left out of its corpus.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ttrl.data import arithmetic

SLIPS = {1: 0.12, 2: 0.16, 3: 0.2, 4: 0.42}  # level -> probability of a slip in each column
STEPS = 600
BATCH = 128
LEARNING_RATE = 3e-3
SEED = 0

EOS, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so one per ordinary character, and any text can be written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, EOS, PAD])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 of about 300,000 parameters with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def corpus_batch(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, reserved: frozenset[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, labels) of one batch; only answers are learned."""
    sequences = []
    while len(sequences) < BATCH:
        level = rng.choice(arithmetic.LEVELS)
        a, b = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
        if (a, b) in reserved:
            continue
        message = {"role": "user", "content": arithmetic.question(a, b)}
        prompt = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )
        answer = arithmetic.worked_answer(a, b, rng, SLIPS[level]) + EOS
        sequences.append((tokenizer.encode(prompt), tokenizer.encode(answer)))
    width = max(len(p) + len(a) for p, a in sequences)
    pad = tokenizer.pad_token_id
    ids = [p + a + [pad] * (width - len(p) - len(a)) for p, a in sequences]
    labels = [[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in sequences]
    return torch.tensor(ids), torch.tensor(labels)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    output = parser.parse_args().output
    if output.exists():
        parser.error(f"{output} exists; name a new folder")

    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    reserved = arithmetic.reserved()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    started = time.perf_counter()
    for _step in track(range(STEPS), "training"):
        ids, labels = corpus_batch(rng, tokenizer, reserved)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if _step % 100 == 0:
            print(_step, loss.item(), time.perf_counter() - started, flush=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(
        f"{model.num_parameters():,} parameters, {STEPS} steps, last loss {loss.item():.4f},",
        f"{time.perf_counter() - started:.0f} s -> {output}",
    )


if __name__ == "__main__":
    main()
