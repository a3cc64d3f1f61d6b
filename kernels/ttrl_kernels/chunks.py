"""The host loop: matmul → row statistics → loss on [C] vectors → row gradient → two matmuls.

Of the [T, V] matrix of logits one chunk of rows exists at a time. Work that would multiply by
zero is never started:

- dead rows (no loss on that token) skip everything, the forward matmul too;
- live rows whose gradient is exactly zero (the clipped side of PPO, an advantage of 0 without KL
  or entropy term) are compacted away before the row gradient and both gradient matmuls.

Precision: logits, row statistics and weight gradients are float32 (float64 for float64 inputs),
rounded to the dtype of the inputs once, by the caller. On a GPU the matmuls read bfloat16 and
accumulate and return float32, with the gradient of the logits rounded to bfloat16 in between. CPU
matmuls cannot return float32 from bfloat16, and rounding the logits would cost more accuracy than
all the rest, so there the operands are widened to float32, the weight once per call.

Shapes by suffix: ``_T`` packed tokens, ``_L`` live rows, ``_C`` rows of a chunk, ``_K`` those of
them that are kept, ``_H`` hidden size, ``_V`` vocabulary. ``at_C`` are positions among the live
rows. Nothing here records a graph: call it without gradients (`torch.no_grad`, or from within a
`torch.autograd.Function`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ttrl_kernels.loss_math import (
    PolicyOptions,
    TokenData,
    TokenLosses,
    accumulation_dtype,
    token_gradients,
    token_losses,
)
from ttrl_kernels.rows import RowBackend, RowGrads, RowStats

LOGITS_BYTES = 1 << 30
"""Size of the one logits buffer. Each chunk also reads and writes all of dW once, which equals
its matmul time near 700 rows on an A100 or H200, so a chunk wants to be well above that; 1 GiB is
1766 rows of a 152k vocabulary in float32, and still fits beside a 7B model on 40 GB. The PyTorch
rows take two to three times as much again while they work."""


class Needs(NamedTuple):
    """Which gradients are wanted; the work for the others is not done."""

    hidden: bool
    weight: bool
    bias: bool


@dataclass(frozen=True)
class Head:
    """z_t = softcap(W x_t + b) / τ_t for the live rows of a packed batch, a chunk at a time."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    rows_L: Tensor
    """Live rows, as positions in ``_T``."""
    targets_L: Tensor
    temperature_L: Tensor
    softcap: float | None

    @property
    def dtype(self) -> torch.dtype:
        """Of logits, statistics and accumulated gradients."""
        return accumulation_dtype(self.hidden_TH.dtype)

    @property
    def matmul_dtype(self) -> torch.dtype:
        """What the matmuls read: see "Precision" above."""
        return self.hidden_TH.dtype if self.hidden_TH.is_cuda else self.dtype

    @cached_property
    def matmul_weight_VH(self) -> Tensor:
        return self.weight_VH.to(self.matmul_dtype)

    def chunk_rows(self, count: int) -> int:
        """Rows per chunk when ``count`` are to be done."""
        row_bytes = self.weight_VH.shape[0] * self.dtype.itemsize
        return max(1, min(count, LOGITS_BYTES // row_bytes))

    def inputs(self, at_C: Tensor) -> Tensor:
        return self.hidden_TH[self.rows_L[at_C]].to(self.matmul_dtype)

    def logits(self, at_L: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunk by chunk, positions and logits u; the next chunk overwrites the logits."""
        rows = self.chunk_rows(len(at_L))
        buffer_CV = torch.empty(
            rows, self.weight_VH.shape[0], dtype=self.dtype, device=self.hidden_TH.device
        )
        for start in range(0, len(at_L), rows):
            at_C = at_L[start : start + rows]
            logits_CV = buffer_CV[: len(at_C)]
            _matmul(self.inputs(at_C), self.matmul_weight_VH.t(), out=logits_CV)
            if self.bias_V is not None:
                logits_CV += self.bias_V
            yield at_C, logits_CV

    def all_rows(self) -> Tensor:
        return torch.arange(len(self.rows_L), device=self.rows_L.device)

    def row_stats(self, backend: RowBackend, at_C: Tensor, logits_CV: Tensor) -> RowStats:
        targets_C, temperature_C = self.targets_L[at_C], self.temperature_L[at_C]
        return backend.row_stats(logits_CV, targets_C, temperature_C, self.softcap)


class Gradients:
    """dX, dW and db of a head, accumulated over chunks; None where not needed."""

    def __init__(self, head: Head, needs: Needs):
        def zeros(like: Tensor | None, needed: bool) -> Tensor | None:
            return torch.zeros_like(like, dtype=head.dtype) if like is not None and needed else None

        self.head = head
        self.hidden_TH = zeros(head.hidden_TH, needs.hidden)
        self.weight_VH = zeros(head.weight_VH, needs.weight)
        self.bias_V = zeros(head.bias_V, needs.bias)
        self.rows = 0
        """Rows that cost the gradient matmuls."""

    def add(
        self,
        backend: RowBackend,
        at_C: Tensor,
        logits_CV: Tensor,
        stats: RowStats,
        grads: RowGrads,
    ) -> None:
        """Add the rows whose gradient is not exactly zero; overwrites the logits."""
        head = self.head
        kept_K = nonzero_rows(grads)
        if len(kept_K) == 0:
            return
        if len(kept_K) < len(at_C):
            at_C, logits_CV = at_C[kept_K], logits_CV[kept_K]
            stats, grads = stats.at(kept_K), grads.at(kept_K)
        backend.row_grad_(
            logits_CV, head.targets_L[at_C], head.temperature_L[at_C], head.softcap, stats, grads
        )
        self.rows += len(at_C)
        if self.bias_V is not None:
            self.bias_V += logits_CV.sum(0)
        dlogits_KV = logits_CV.to(head.matmul_dtype)
        if self.hidden_TH is not None:
            dhidden_KH = torch.empty(
                len(at_C), self.hidden_TH.shape[1], dtype=head.dtype, device=dlogits_KV.device
            )
            _matmul(dlogits_KV, head.matmul_weight_VH, out=dhidden_KH)
            self.hidden_TH[head.rows_L[at_C]] = dhidden_KH
        if self.weight_VH is not None:
            _add_matmul(dlogits_KV.t(), head.inputs(at_C), out=self.weight_VH)


class PolicyLossParts(NamedTuple):
    """A policy loss before its per-token vectors are put back in their places."""

    stats: RowStats
    losses: TokenLosses
    gradients: Gradients | None
    """None when no gradient is needed."""


def logprob(head: Head, backend: RowBackend) -> RowStats:
    """Statistics of every live row."""
    out = _empty_stats(head)
    for at_C, logits_CV in head.logits(head.all_rows()):
        _write(out, at_C, head.row_stats(backend, at_C, logits_CV))
    return out


def logprob_gradients(
    head: Head, backend: RowBackend, stats_L: RowStats, grads_L: RowGrads, needs: Needs
) -> Gradients:
    """The gradients of a head from those of its log-probs and entropies: logits are recomputed."""
    out = Gradients(head, needs)
    for at_C, logits_CV in head.logits(nonzero_rows(grads_L)):
        out.add(backend, at_C, logits_CV, stats_L.at(at_C), grads_L.at(at_C))
    return out


def policy_loss(
    head: Head, backend: RowBackend, tokens_L: TokenData, options: PolicyOptions, needs: Needs
) -> PolicyLossParts:
    """Loss and gradients of the live rows: three matmuls per row, four with a sequence ratio.

    A token's gradient depends on its own log-prob alone, so its logits become gradients while
    they are still there. A sequence ratio needs every log-prob of the sequence first, so the
    logits are computed twice.
    """
    gradients: Gradients | None = None
    if not any(needs):
        stats_L = logprob(head, backend)
    elif options.ratio_level == "sequence":
        stats_L = logprob(head, backend)
        grads_L = RowGrads(*token_gradients(stats_L.logp, stats_L.entropy, tokens_L, options))
        gradients = logprob_gradients(head, backend, stats_L, grads_L, needs)
    else:
        stats_L, gradients = _one_pass(head, backend, tokens_L, options, needs)
    losses_L = token_losses(stats_L.logp, stats_L.entropy, tokens_L, options)
    return PolicyLossParts(stats_L, losses_L, gradients)


def _one_pass(
    head: Head, backend: RowBackend, tokens_L: TokenData, options: PolicyOptions, needs: Needs
) -> tuple[RowStats, Gradients]:
    """Statistics and gradients from the same logits."""
    out, gradients = _empty_stats(head), Gradients(head, needs)
    for at_C, logits_CV in head.logits(head.all_rows()):
        stats = head.row_stats(backend, at_C, logits_CV)
        _write(out, at_C, stats)
        grads = RowGrads(*token_gradients(stats.logp, stats.entropy, tokens_L.at(at_C), options))
        gradients.add(backend, at_C, logits_CV, stats, grads)
    return out, gradients


def nonzero_rows(grads: RowGrads) -> Tensor:
    """Positions of the rows whose gradient is not exactly zero; a NaN counts as not zero."""
    nonzero = grads.logp != 0
    if grads.entropy is not None:
        nonzero |= grads.entropy != 0
    return nonzero.nonzero().squeeze(1)


def _empty_stats(head: Head) -> RowStats:
    shape, device = head.rows_L.shape, head.rows_L.device
    return RowStats(*(torch.empty(shape, dtype=head.dtype, device=device) for _ in range(4)))


def _write(out: RowStats, at_C: Tensor, stats: RowStats) -> None:
    for out_L, values_C in zip(out, stats, strict=True):
        out_L[at_C] = values_C


def _matmul(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out = a @ b, accumulated in the dtype of ``out``; autocast leaves calls with out= alone."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def _add_matmul(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out += a @ b, accumulated in the dtype of ``out``."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
