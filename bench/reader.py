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
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import ROOT
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

sys.path.insert(0, str(ROOT / "scripts"))
from teaching import Batch, batches, taught

from ttrl.data import arithmetic
from ttrl.models.pretrained import load_tokenizer
from ttrl.settings.recipe import load_settings

SHOWN = (0, 0, 1, 2, 3, 5)
"""Solutions before a question: of a single answer, a chain, a debate and a mixture."""
SLIPS = {1: 0.12, 2: 0.15, 3: 0.18, 4: 0.4}
"""Level -> probability of a slip in each column, as in `scripts/build_tiny_base.py`."""
STEPS, BATCH, LEARNING_RATE, SEED = 160, 64, 1e-3, 0

MADE_WITH = {"steps": STEPS, "batch": BATCH, "seed": SEED}
"""What decides its weights, for the file of a benchmark's results."""


def corpus(tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    """Yield batches of additions; what others have said of one is shown, and not learned."""
    reserved = arithmetic.reserved()

    def example(rng: random.Random, level: int, a: int, b: int) -> tuple[str, str] | None:
        if (a, b) in reserved:
            return None
        shown, slip = rng.choice(SHOWN), SLIPS[level]
        own, *others = (arithmetic.worked_answer(a, b, rng, slip) for _ in range(shown + 1))
        return "".join(f"{text}\n" for text in others) + arithmetic.question(a, b), own

    return batches(example, tokenizer, BATCH, SEED, tokenizer.pad_token_id)


def teach(folder: Path) -> None:
    """Train the model that ships, and save it as ``folder``."""
    settings = load_settings("tiny-agents")
    tokenizer = load_tokenizer(settings.model)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "ttrl" / "data" / "tiny_base")
    begun = time.perf_counter()
    losses = taught(model, corpus(tokenizer), STEPS, LEARNING_RATE)
    for step, loss in enumerate(losses, start=1):
        if step % 50 == 0:
            taken = time.perf_counter() - begun
            print(f"step {step}: loss {loss:.4f}, {taken:.0f} s", file=sys.stderr)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def reader_at(folder: Path | None, place: str) -> Path:
    """Return the folder of a reader: the given one, else one in ``place``; teach it if need be."""
    found = (folder or Path(place) / "reader").resolve()
    if not found.exists():
        teach(found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write")
    teach(parser.parse_args().folder)
