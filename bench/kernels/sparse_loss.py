"""What a loss costs in which a fifth of the tokens teach, against one in which all do.

    python bench/kernels/sparse_loss.py --output bench/results/sparse_loss.json

Forward and backward of `linear_policy_loss`, the same tokens with and without four fifths of their
advantages, as an entropy mask leaves them. Rounds alternate, in turn beginning with either, so
that whatever else the machine does hits both alike; the figure is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from contenders import Case, Shape, make_case, ours_loss
from report import kernel_packages

KEPT = 0.2
BAR = 0.6
"""Most that the sparse loss may cost of the dense one: (1 + 2 · 0.2) / 3 = 0.47 of its products
with the head, and all of the statistics of its rows."""


def main() -> None:
    """Measure, print and write."""
    sys.path.append(str(Path(__file__).parents[1]))
    from machine import describe

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    shape = Shape(options.tokens, options.hidden, options.vocabulary, torch.float32)
    dense = make_case(shape, "cpu")
    order = torch.randperm(options.tokens, generator=torch.Generator().manual_seed(1))
    dropped = order[round(KEPT * options.tokens) :]
    cases = {
        "dense": dense,
        "sparse": replace(dense, advantages=dense.advantages.index_fill(0, dropped, 0.0)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        timed(case)  # warm
    for round_ in range(options.rounds):
        for name in sorted(cases, reverse=bool(round_ % 2)):
            seconds[name].append(timed(cases[name]))
    medians = {name: median(values) for name, values in seconds.items()}
    found = {
        "machine": describe() | kernel_packages(),
        "shape": str(shape),
        "kept": KEPT,
        "seconds": seconds,
        "median_s": medians,
        "ratio": medians["sparse"] / medians["dense"],
        "bar": BAR,
    }
    print(f"{medians} ratio {found['ratio']:.3f}, bar {BAR}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def timed(case: Case) -> float:
    """Seconds of one loss and its gradients."""
    case.hidden.grad = case.weight.grad = None
    gc.collect()
    begun = time.perf_counter()
    ours_loss(case).backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
