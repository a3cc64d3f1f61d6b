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
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from teaching import Batch, batches, taught
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ttrl.answers import default_grader, extract_answer
from ttrl.data import arithmetic
from ttrl.data.questions import load_questions
from ttrl.evaluation.evaluation import Evaluation
from ttrl.models.pretrained import load_tokenizer
from ttrl.report.display import Display
from ttrl.rollout.pool import make_pool
from ttrl.settings.recipe import load_settings

SLIPS = {1: 0.12, 2: 0.15, 3: 0.18, 4: 0.4}  # level -> probability of a slip in each column
STEPS = 1500
BATCH = 128
LEARNING_RATE = 3e-3
SEED = 0

CARD = """\
# tiny-base

The starting model of ttrl's embedded task: a Qwen2 of {parameters:,} parameters, one token a byte,
that adds numbers column by column and often slips. It can do nothing else.

Made by `scripts/build_tiny_base.py` from random weights, on {examples:,} generated additions in
which each column is wrong with the probability below: the carry forgotten or, without one, one too
many or too few. The questions of ttrl's splits are not among them.

Measured on the 128 questions of `arithmetic:train`, 64 samples each at temperature 1, in %:

| level | digits | slips per column | pass@1 | maj@64 |
|---|---|---|---|---|
{rows}
| all | | | {pass_at_1:.1f} | {maj_at_64:.1f} |

Apache-2.0, like the rest of the repository.
"""

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
    """A Qwen2 of about 400,000 parameters with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,  # heads of 32 numbers: the smallest that vLLM has on a CPU
        intermediate_size=192,
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


def corpus(tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Yield batches of additions, none of them trained or measured on by ttrl."""
    reserved = arithmetic.reserved()

    def example(rng: random.Random, level: int, a: int, b: int) -> tuple[str, str] | None:
        if (a, b) in reserved:
            return None
        return arithmetic.question(a, b), arithmetic.worked_answer(a, b, rng, SLIPS[level])

    return batches(example, tokenizer, BATCH, SEED, tokenizer.pad_token_id)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    output = parser.parse_args().output
    if output.exists():
        parser.error(f"{output} exists; name a new folder")

    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    started = time.perf_counter()
    losses = taught(model, corpus(tokenizer), STEPS, LEARNING_RATE)
    *_, loss = track(losses, "training", STEPS)
    minutes = (time.perf_counter() - started) / 60
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    scores = measure(output)
    card = model_card(model.num_parameters(), scores)
    (output / "README.md").write_text(card, encoding="utf-8")
    print(f"{card}\nlast loss {loss:.4f}, {minutes:.1f} minutes of training -> {output}")


def measure(path: Path) -> dict[str, float]:
    """pass@1 and maj@64 on the unlabeled training questions, as `ttrl eval` measures them."""
    settings = load_settings(
        "tiny-arithmetic", model=str(path), overrides=["evaluation.samples=64"]
    )
    asked = load_questions(settings.data.train, settings.data, load_tokenizer(settings.model))
    evaluation = Evaluation(settings, extract_answer, default_grader(), "train", asked, (1, 64))
    pool = make_pool(settings, load_tokenizer(settings.model))
    return evaluation.run(pool, 0, Display(Console(quiet=True))).flat()


def model_card(parameters: int, scores: dict[str, float]) -> str:
    """What the model is, how it was made, and what it can do."""
    rows = [
        f"| {level} | {level + 1} | {slip:.0%} | {100 * scores[f'pass@1/level={level}']:.1f} "
        f"| {100 * scores[f'maj@64/level={level}']:.1f} |"
        for level, slip in SLIPS.items()
    ]
    return CARD.format(
        parameters=parameters,
        examples=STEPS * BATCH,
        rows="\n".join(rows),
        pass_at_1=100 * scores["pass@1"],
        maj_at_64=100 * scores["maj@64"],
    )


if __name__ == "__main__":
    main()
