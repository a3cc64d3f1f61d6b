"""Teach the embedded task's model to read what others have said, right or wrong, before it answers.

    .venv/bin/python bench/reader.py FOLDER

The model that ships has learned to answer one short question, and can do nothing with a longer
prompt. This one has also seen what `ttrl/recipes/tiny-agents.toml` puts before a question: up to
five worked answers to it, with the slips of the model that ships. Its own answers slip as often as
before, so that it has learned to read, and not to judge: what it makes of what it reads is left to
training. Nothing is asked that ttrl trains or measures on.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch
from machine import ROOT
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ttrl.data import arithmetic
from ttrl.models.pretrained import load_tokenizer
from ttrl.settings.recipe import load_settings

SHOWN = (0, 0, 1, 2, 3, 5)
"""Solutions before a question: of a single answer, a chain, a debate and a mixture."""
SLIPS = {1: 0.12, 2: 0.15, 3: 0.18, 4: 0.4}
"""Level -> probability of a slip in each column, as in `scripts/build_tiny_base.py`."""
STEPS, BATCH, LEARNING_RATE, SEED = 160, 64, 1e-3, 0


def batch(
    rng: random.Random, tokenizer: PreTrainedTokenizerBase, reserved: frozenset[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels of a batch; only the last answer of each is learned."""
    rows: list[tuple[list[int], list[int]]] = []
    while len(rows) < BATCH:
        level = rng.choice(arithmetic.LEVELS)
        a, b = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
        if (a, b) in reserved:
            continue
        said = [
            arithmetic.worked_answer(a, b, rng, SLIPS[level]) for _ in range(rng.choice(SHOWN) + 1)
        ]
        message = "".join(f"{text}\n" for text in said[1:]) + arithmetic.question(a, b)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        rows.append((tokenizer.encode(prompt), tokenizer.encode(said[0] + tokenizer.eos_token)))
    width = max(len(p) + len(a) for p, a in rows)
    ids = [p + a + [tokenizer.pad_token_id] * (width - len(p) - len(a)) for p, a in rows]
    labels = [[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in rows]
    return torch.tensor(ids), torch.tensor(labels)


def teach(folder: Path) -> None:
    """Train the model that ships, and save it as ``folder``."""
    settings = load_settings("tiny-agents")
    tokenizer = load_tokenizer(settings.model)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng, reserved = random.Random(SEED), arithmetic.reserved()
    model = AutoModelForCausalLM.from_pretrained(ROOT / "ttrl" / "data" / "tiny_base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    begun = time.perf_counter()
    for step in range(1, STEPS + 1):
        ids, labels = batch(rng, tokenizer, reserved)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            taken = time.perf_counter() - begun
            print(f"step {step}: loss {loss.item():.4f}, {taken:.0f} s", file=sys.stderr)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write")
    teach(parser.parse_args().folder)
