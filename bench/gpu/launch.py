"""One launch of each Triton row kernel: error against float64, time to compile, bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from environment import seconds
from record import Record, part_parser
from ttrl_kernels.rows import reference, triton
from ttrl_kernels.rows.interface import RowGrads, RowStats

T = TypeVar("T")
LIMITS = {"logp": 1e-4, "entropy": 1e-4, "gradient": 1e-2}
"""Largest error that passes: absolute of the first two, and relative to all of the gradient, which
is rounded to bfloat16. What is wrong is far off; `tests/kernels` knows the exact bounds."""
CHECKED = 64
"""Rows that are compared; a row does not depend on those beside it."""


def main() -> None:
    """Launch, compare, time."""
    options = part_parser(__doc__).parse_args()
    device, rows, vocabulary = ("cpu", 4, 5003) if options.dry_run else ("cuda", 4096, 151936)
    record = Record(options.output)
    record["shape"] = [rows, vocabulary]
    g = torch.Generator(device).manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=g, device=device).mul_(2.5)
    targets = torch.randint(vocabulary, (rows,), generator=g, device=device)
    temperature = torch.rand(rows, generator=g, device=device) + 0.5
    grads = RowGrads(torch.randn(rows, generator=g, device=device), None)
    kept = torch.arange(rows, device=device)

    def stats() -> RowStats:
        return triton.row_stats(logits, targets, temperature, None)

    def gradient(given: torch.Tensor) -> torch.Tensor:
        return triton.row_grad_(
            given, kept, targets, temperature, None, found, grads, torch.bfloat16
        )

    found, first_s = _first(stats)
    record["compile_s"] = {"row_stats": first_s}
    part = slice(CHECKED)
    wide = logits[part].double()
    truth = reference.row_stats(wide, targets[part], temperature[part].double(), None)
    errors = {
        name: float((getattr(found, name)[part] - getattr(truth, name)).abs().max())
        for name in ("logp", "entropy")
    }
    true_gradient = reference.row_grad_(
        wide,
        kept[part],
        targets[part],
        temperature[part].double(),
        None,
        truth,
        RowGrads(grads.logp[part].double(), None),
        torch.float64,
    )
    scratch = logits.clone()
    ours, first_s = _first(lambda: gradient(scratch))
    record["compile_s"] |= {"row_grad": first_s}
    errors["gradient"] = float((ours[part] - true_gradient).norm() / true_gradient.norm())
    record["errors"] = errors
    bad = {name: error for name, error in errors.items() if not error <= LIMITS[name]}
    if bad:
        raise SystemExit(f"wrong, the limits are {LIMITS}: {bad}")
    # The gradient overwrites what it reads: after the first time its numbers mean nothing.
    times = {
        "row_stats": (seconds(stats, 3), 4),
        "row_grad": (seconds(lambda: gradient(scratch), 3), 6),
    }
    record["kernels"] = {
        name: {"ms": 1e3 * s, "gb_s": nbytes * logits.numel() / s / 1e9}
        for name, (s, nbytes) in times.items()
    }


def _first(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and the seconds of this first time, compilation included."""
    begun = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - begun


if __name__ == "__main__":
    main()
