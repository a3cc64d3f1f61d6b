"""Cases for the Triton rows, on a GPU or in the interpreter, and what they are compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from tolerances import FP32_ULP
from ttrl_kernels.rows import triton
from ttrl_kernels.rows.interface import RowBackend, RowGrads, RowStats

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = triton.BLOCK
INF, NAN = math.inf, math.nan

# The interpreter cuts the lower half of a float32 off where a GPU rounds it to bfloat16.
BF16_STEP = 2.0**-8 if DEVICE == "cuda" else 2.0**-7


def case(
    rows: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with a spread of 2.5, targets, temperatures."""
    g = torch.Generator().manual_seed(seed)
    logits = (2.5 * torch.randn(rows, vocabulary, generator=g)).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=g)
    temperature = 0.5 + torch.rand(rows, generator=g)
    return logits.to(DEVICE), targets.to(DEVICE), temperature.to(DEVICE)


def random_grads(rows: int, entropy: bool = True, seed: int = 1) -> RowGrads:
    g = torch.Generator().manual_seed(seed)
    grads = torch.randn(2, rows, generator=g).to(DEVICE)
    return RowGrads(grads[0], grads[1] if entropy else None)


def gradient(
    backend: RowBackend,
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    softcap: float | None,
    grads: RowGrads,
    kept: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """dL/du by a backend from its own statistics; the given logits stay as they are."""
    logits = logits.clone()
    stats = backend.row_stats(logits, targets, temperature, softcap)
    kept = torch.arange(len(logits), device=logits.device) if kept is None else kept
    return backend.row_grad_(
        logits,
        kept,
        targets[kept],
        temperature[kept],
        softcap,
        stats.at(kept),
        grads,
        dtype or logits.dtype,
    )


def double(*tensors: torch.Tensor | None) -> list[Any]:
    return [None if x is None else x.double() for x in tensors]


def assert_equal_rows(ours: RowStats, truth: RowStats) -> None:
    """Equal up to float32 rounding, NaN where the truth is; row_max only where it means anything.

    An entropy is a sum of non-negative terms and a logp at most 0, whatever the logits.
    """
    assert all(x.dtype == torch.float32 for x in ours)
    known = ~truth.log_sum.isnan()
    ours = RowStats(torch.where(known, ours.row_max, NAN), *ours[1:])
    truth = RowStats(torch.where(known, truth.row_max, NAN), *truth[1:])
    for name, a, b in zip(RowStats._fields, ours, truth, strict=True):
        torch.testing.assert_close(
            a.double(),
            b.double(),
            rtol=1e-6,
            atol=2e-6,
            equal_nan=True,
            msg=lambda m, n=name: n + m,
        )
    assert (ours.logp[known] <= FP32_ULP).all() and (ours.entropy[known] >= -FP32_ULP).all()
