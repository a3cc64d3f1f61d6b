"""The row operations in C++ for the CPU: ``kernels/csrc/rows.cpp``, compiled by setup.py.

Logits are float32 or bfloat16, all arithmetic is float32. The library holds operators and no
Python, and is looked for once, when this module is imported.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ttrl_kernels.rows.interface import RowGrads, RowStats

LIBRARY = Path(__file__).parent.parent / "_rows.so"
WHY_NOT_BUILT = LIBRARY.with_suffix(".txt")
"""File that setup.py writes in the library's place when it cannot build it: the reason."""


def _load() -> str | None:
    """Load the library, or return the reason if that is not possible."""
    if not LIBRARY.exists():
        reason = WHY_NOT_BUILT.read_text().strip() if WHY_NOT_BUILT.exists() else "not built"
        return f"{reason}; to build it: TTRL_BUILD_EXT=1 pip install --no-build-isolation -e ."
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load with torch {torch.__version__}: {error}"
    return None


missing: str | None = _load()
"""Why the library cannot be used; None when it can."""


def row_stats(
    logits_CV: Tensor, targets_C: Tensor, temperature_C: Tensor, softcap: float | None
) -> RowStats:
    """Compute the statistics of each row, by one read of the logits.

    Raises ValueError for logits that are not float32 or bfloat16 on the CPU.
    """
    _check(logits_CV)
    out = temperature_C.new_empty(4, len(logits_CV))
    torch.ops.ttrl_rows.row_stats(logits_CV, targets_C, temperature_C, softcap, out)
    return RowStats(*out)


def row_grad_(
    logits_CV: Tensor,
    rows_K: Tensor,
    targets_K: Tensor,
    temperature_K: Tensor,
    softcap: float | None,
    stats_K: RowStats,
    grads_K: RowGrads,
    dtype: torch.dtype,
) -> Tensor:
    """Compute dL/du of some rows, by one read and one write, where the first K logits were.

    Raises ValueError for logits that are not float32 or bfloat16 on the CPU.
    """
    _check(logits_CV)
    entropy_K = torch.zeros_like(grads_K.logp) if grads_K.entropy is None else grads_K.entropy
    torch.ops.ttrl_rows.row_grad_(
        logits_CV,
        rows_K,
        targets_K,
        temperature_K,
        softcap,
        torch.stack(stats_K),
        torch.stack([grads_K.logp, entropy_K]),
    )
    return logits_CV[: len(rows_K)].to(dtype)


def _check(logits_CV: Tensor) -> None:
    if logits_CV.dtype not in (torch.float32, torch.bfloat16) or logits_CV.device.type != "cpu":
        raise ValueError(
            f"logits are {logits_CV.dtype} on {logits_CV.device}, expected torch.float32 or "
            "torch.bfloat16 on the CPU: use backend='torch'"
        )
