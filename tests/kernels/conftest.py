"""Every test of the kernels runs with uninitialized memory turned into NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ttrl_kernels import rows


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` and `empty_like` give NaN: a result that read unwritten memory shows it."""
    with torch.device("meta"):  # torch notes its constructors once: what is put here is none
        torch.empty(1)
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poisoned(
            *args: Any, original: Callable[..., torch.Tensor] = original, **kwargs: Any
        ) -> torch.Tensor:
            out = original(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(torch, name, poisoned)


@pytest.fixture(autouse=True)
def triton_where_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRITON_INTERPRET=1, "auto" means the Triton rows on the CPU."""
    if "interpreter" in rows.backends()["triton"]:
        monkeypatch.setitem(rows._PREFERENCES, "cpu", ("triton",))


class Recorder:
    """A row backend that notes what it is asked to do."""

    def __init__(self, backend: rows.RowBackend) -> None:
        self.backend = backend
        self.stats_rows, self.grad_rows, self.grads = [], [], []

    def row_stats(self, logits_CV: torch.Tensor, *args: Any) -> rows.RowStats:
        self.stats_rows.append(len(logits_CV))
        return self.backend.row_stats(logits_CV, *args)

    def row_grad_(self, logits_CV: torch.Tensor, rows_K: torch.Tensor, *args: Any) -> torch.Tensor:
        self.grad_rows.append(len(rows_K))
        self.grads.append(args[-2])
        return self.backend.row_grad_(logits_CV, rows_K, *args)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records the row operations of the default backend."""
    recorder = Recorder(rows._load("torch"))
    monkeypatch.setattr(rows, "_load", lambda name: recorder)
    return recorder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven float32 rows a chunk, so that the last of them is short."""
    from cases import V
    from ttrl_kernels import chunks

    monkeypatch.setattr(chunks, "LOGITS_BYTES", 7 * V * 4)
