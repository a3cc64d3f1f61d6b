"""Rows of an update with each prompt once, and with a prompt for every answer.

    .venv/bin/python bench/shared_rows.py

Counted by the packing itself, for answers whose lengths are spread evenly around a mean: what a
row costs is another question. ``keys`` are what attention reads, over the rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import count

import numpy as np
from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

from ttrl.models.packing import pack
from ttrl.types import TrainSample

RESULTS = ROOT / "bench" / "results" / "shared_rows.json"


@dataclass(frozen=True)
class Shape:
    """Lengths of an optimizer step's samples, in tokens."""

    prompt: int
    answer: int
    """Mean; from half of it to one and a half times."""
    questions: int
    samples: int
    tokens_per_batch: int
    ranks: int = 1


SHAPES = {
    "embedded task": Shape(25, 40, 16, 32, 8192),
    "8 x A100, math, short answers": Shape(150, 600, 8, 32, 16384, 8),
    "8 x A100, math, long answers": Shape(150, 1500, 8, 32, 16384, 8),
    "long prompts, short answers": Shape(1500, 100, 8, 32, 16384, 8),
}


def rows_of(shape: Shape) -> dict[str, float]:
    """Count the rows of all micro-batches, and what they would be without sharing."""
    random, fresh = np.random.default_rng(0), count(1)
    samples = []
    for _ in range(shape.questions):
        prompt = (next(fresh),) * shape.prompt
        for _ in range(shape.samples):
            length = int(random.integers(shape.answer // 2, shape.answer * 3 // 2 + 1))
            # No two answers begin alike: only prompts are shared.
            answer, zeros = (next(fresh),) * length, (0.0,) * length
            samples.append(TrainSample.of_answer("q", prompt, answer, zeros, 1.0))
    batches = pack(samples, [1.0] * len(samples), shape.tokens_per_batch, shape.ranks)
    shared = sum(len(batch.token_ids_R) for batch in batches)
    keys = sum(
        len(batch.token_ids_R if batch.sequences.keys_K is None else batch.sequences.keys_K)
        for batch in batches
    )
    alone = sum(len(sample.token_ids) - 1 for sample in samples)
    return {
        "rows": shared,
        "rows without sharing": alone,
        "share": round(shared / alone, 4),
        "keys per row": round(keys / shared, 3),
        "micro-batches": len(batches),
        "tokens of the largest over the mean": round(
            max(len(batch.token_ids_R) for batch in batches) * len(batches) / shared, 3
        ),
    }


def main() -> None:
    """Count, print and write."""
    found = {name: asdict(shape) | rows_of(shape) for name, shape in SHAPES.items()}
    table = Table()
    for column in ("", "prompt", "answer", "rows", "without sharing", "share", "keys per row"):
        table.add_column(column)
    for name, row in found.items():
        names = ("prompt", "answer", "rows", "rows without sharing", "share", "keys per row")
        table.add_row(name, *(str(row[key]) for key in names))
    Console().print(table)
    RESULTS.write_text(json.dumps({"machine": describe(), "shapes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
