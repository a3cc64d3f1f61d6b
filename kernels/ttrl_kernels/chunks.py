"""The host loop: matmul → row statistics → loss on [C] vectors → row gradient → two matmuls.

Of the [T, V] matrix of logits one chunk of rows exists at a time. Work that would multiply by
zero is never started:

- dead rows (no loss on that token) skip everything, the forward matmul too;
- live rows whose gradient is exactly zero (the clipped side of PPO, an advantage of 0 without KL
  or entropy term) are compacted away before the row gradient and both gradient matmuls.

Precision: row arithmetic and statistics are float32 (float64 for float64 inputs). With bfloat16
inputs the gradient of the logits is rounded to bfloat16 before the two matmuls that read it, as in
plain PyTorch. On a GPU all matmuls return float32 and dW is accumulated in it, to be rounded once,
by the caller. CPU matmuls cannot return float32 from bfloat16, and widening their operands would
halve their speed: there logits and dX are rounded to bfloat16 as plain PyTorch rounds them, and dW
once per chunk (see `weight_gradient_dtype`).

Shapes by suffix: ``_T`` packed tokens, ``_L`` live rows, ``_C`` rows of a chunk, ``_K`` those of
them that are kept, ``_H`` hidden size, ``_V`` vocabulary. ``at_C`` are positions among the live
rows. Nothing here records a graph: call it without gradients (`torch.no_grad`, or from within a
`torch.autograd.Function`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ttrl_kernels.loss_math import (
    TokenLosses,
    accumulation_dtype,
    token_gradients,
    token_losses,
)
from ttrl_kernels.policy_options import PolicyOptions
from ttrl_kernels.rows import RowBackend, RowGrads, RowStats
from ttrl_kernels.signature import Needs
from ttrl_kernels.support import Members
from ttrl_kernels.token_data import TokenData

LOGITS_BYTES = 1 << 30
"""Size of the one logits buffer. Each chunk also reads and writes all of dW once, which equals
its matmul time near 700 rows on an A100 or H200, so a chunk wants to be well above that; 1 GiB is
1766 rows of a 152k vocabulary in float32, and still fits beside a 7B model on 40 GB. The PyTorch
rows take two to three times as much again while they work."""

CPU_COLUMN_BYTES = 768
"""Size of a CPU's logits buffer, per entry of the vocabulary: 192 rows of float32 or 384 of
bfloat16. At 65k entries a third more rows gain 2 to 4 % of the time, and a third fewer lose as
much."""

CPU_CHUNK_BYTES = 2**22
"""Size of a CPU's logits buffer where that takes more rows: of a small vocabulary, of whose rows a
chunk would else take less time than its fifty operations do to start."""

SLAB_ROWS = 4096
"""Rows of W that a CPU multiplies by, and of dW that it adds to, at a time: what it packs for the
matmul, or has just multiplied, then stays in the cache."""


@dataclass(frozen=True)
class Head:
    """Logits z_t = softcap(W x_t + b) / τ_t of a packed batch's live rows, a chunk at a time."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    rows_L: Tensor
    """Live rows, as positions in ``_T``."""
    targets_L: Tensor
    temperature_L: Tensor
    softcap: float | None
    support_LM: Tensor | None = None
    """int64: the tokens that could have been drawn, padded with -1; a row of -1 has all."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of statistics and gradients."""
        return accumulation_dtype(self.hidden_TH.dtype)

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype that the matmuls return, and so that of the logits."""
        return product_dtype(self.hidden_TH)

    def inputs(self, at_C: Tensor) -> Tensor:
        """Return the hidden states [C, H] of these live rows."""
        return self.hidden_TH[self.rows_L[at_C]]

    def chunks(self, at_L: Tensor) -> Iterator[Chunk]:
        """Yield these rows' logits u, chunk by chunk; the next chunk overwrites the logits."""
        most = chunk_rows(self.hidden_TH, self.weight_VH)
        parts = [(part_L, even_rows(len(part_L), most)) for part_L in self._parts(at_L)]
        buffer_CV = torch.empty(
            max(rows for _, rows in parts),
            self.weight_VH.shape[0],
            dtype=self.product_dtype,
            device=self.hidden_TH.device,
        )
        for restricted, (part_L, rows) in enumerate(parts):
            for start in range(0, len(part_L), rows):
                at_C = part_L[start : start + rows]
                logits_CV = buffer_CV[: len(at_C)]
                self._write_logits(at_C, logits_CV)
                yield Chunk(at_C, logits_CV, self._members(at_C, logits_CV) if restricted else None)

    def _parts(self, at_L: Tensor) -> list[Tensor]:
        """Split rows into those of all tokens and, behind them, those with a support."""
        if self.support_LM is None:
            return [at_L]
        restricted = (self.support_LM[at_L] >= 0).any(1)
        return [at_L[~restricted], at_L[restricted]]

    def _members(self, at_C: Tensor, logits_CV: Tensor) -> Members:
        assert self.support_LM is not None
        support_CM, targets_C = self.support_LM[at_C], self.targets_L[at_C]
        return Members.of(logits_CV, support_CM, targets_C, self.softcap, self.dtype)

    def _write_logits(self, at_C: Tensor, out: Tensor) -> None:
        inputs_CH, size = self.inputs(at_C), out.shape[1]
        step = size if out.is_cuda else SLAB_ROWS
        for start in range(0, size, step):
            slab = slice(start, start + step)
            bias = None if self.bias_V is None else self.bias_V[slab]
            _matmul(inputs_CH, self.weight_VH[slab].t(), out=out[:, slab], bias=bias)

    def all_rows(self) -> Tensor:
        """Return the positions of all live rows."""
        return torch.arange(len(self.rows_L), device=self.rows_L.device)

    def row_stats(self, backend: RowBackend, chunk: Chunk) -> RowStats:
        """Compute the statistics of a chunk's rows from their logits."""
        temperature_C, members = self.temperature_L[chunk.at_C], chunk.members
        if members is not None:  # the softcap is applied
            return backend.row_stats(members.logits_CM, members.target_C, temperature_C, None)
        targets_C = self.targets_L[chunk.at_C]
        return backend.row_stats(chunk.logits_CV, targets_C, temperature_C, self.softcap)

    def row_grad_(
        self,
        backend: RowBackend,
        chunk: Chunk,
        rows_K: Tensor,
        stats_K: RowStats,
        grads_K: RowGrads,
    ) -> Tensor:
        """Compute dL/du [K, V] of some rows in the inputs' dtype; overwrites the logits."""
        at_K, dtype, members = chunk.at_C[rows_K], self.hidden_TH.dtype, chunk.members
        temperature_K = self.temperature_L[at_K]
        if members is None:
            return backend.row_grad_(
                chunk.logits_CV,
                rows_K,
                self.targets_L[at_K],
                temperature_K,
                self.softcap,
                stats_K,
                grads_K,
                dtype,
            )
        grads_KM = backend.row_grad_(
            members.logits_CM,
            rows_K,
            members.target_C[rows_K],
            temperature_K,
            None,
            stats_K,
            grads_K,
            self.dtype,
        )
        dlogits_KV = chunk.logits_CV.view(dtype)[: len(rows_K), : chunk.logits_CV.shape[1]]
        members.spread(grads_KM, rows_K, dlogits_KV)
        return dlogits_KV


class Chunk(NamedTuple):
    """Some rows, and their logits; of rows with a support, their members'."""

    at_C: Tensor
    logits_CV: Tensor
    members: Members | None


class Gradients:
    """dX, dW and db of a head, accumulated over chunks; None where not needed."""

    def __init__(self, head: Head, needs: Needs) -> None:
        """Start with zeros for each gradient that is needed."""

        def zeros(like: Tensor | None, needed: bool, dtype: torch.dtype) -> Tensor | None:
            return torch.zeros_like(like, dtype=dtype) if like is not None and needed else None

        self.head = head
        self.hidden_TH = zeros(head.hidden_TH, needs.hidden, head.product_dtype)
        self.weight_VH = zeros(
            head.weight_VH, needs.weight, weight_gradient_dtype(head.hidden_TH, head.weight_VH)
        )
        self.bias_V = zeros(head.bias_V, needs.bias, head.dtype)
        self.rows = 0
        """Rows that cost the gradient matmuls."""

    def add(self, backend: RowBackend, chunk: Chunk, stats: RowStats, grads: RowGrads) -> None:
        """Add the rows whose gradient is not exactly zero; overwrites the logits."""
        head = self.head
        rows_K = compaction(nonzero_rows(grads), len(chunk.at_C))
        if len(rows_K) == 0:
            return
        at_K = chunk.at_C[rows_K]
        dlogits_KV = head.row_grad_(backend, chunk, rows_K, stats.at(rows_K), grads.at(rows_K))
        self.rows += len(at_K)
        if self.bias_V is not None:
            self.bias_V += dlogits_KV.sum(0, dtype=head.dtype)
        if self.hidden_TH is not None:
            dhidden_KH = torch.empty(
                len(at_K),
                self.hidden_TH.shape[1],
                dtype=head.product_dtype,
                device=dlogits_KV.device,
            )
            _matmul(dlogits_KV, head.weight_VH, out=dhidden_KH)
            self.hidden_TH[head.rows_L[at_K]] = dhidden_KH
        if self.weight_VH is not None:
            _add_matmul(dlogits_KV.t(), head.inputs(at_K), out=self.weight_VH)


class PolicyLossParts(NamedTuple):
    """A policy loss before its per-token vectors are put back in their places."""

    stats: RowStats
    losses: TokenLosses
    gradients: Gradients | None
    """None when no gradient is needed."""


def logprob(head: Head, backend: RowBackend) -> RowStats:
    """Compute the statistics of every live row."""
    out = _empty_stats(head)
    for chunk in head.chunks(head.all_rows()):
        _write(out, chunk.at_C, head.row_stats(backend, chunk))
    return out


def logprob_gradients(
    head: Head, backend: RowBackend, stats_L: RowStats, grads_L: RowGrads, needs: Needs
) -> Gradients:
    """Compute a head's gradients from those of log-probs and entropies; recomputes the logits."""
    out = Gradients(head, needs)
    for chunk in head.chunks(nonzero_rows(grads_L)):
        out.add(backend, chunk, stats_L.at(chunk.at_C), grads_L.at(chunk.at_C))
    return out


def policy_loss(
    head: Head, backend: RowBackend, tokens_L: TokenData, options: PolicyOptions, needs: Needs
) -> PolicyLossParts:
    """Compute loss and gradients of the live rows.

    Three matmuls per row, four where whole sequences are needed. A token's gradient depends on its
    own log-prob alone, so its logits become gradients while they are still there. A sequence's
    ratio needs every log-prob of the sequence first, so the logits are computed twice.
    """
    gradients: Gradients | None = None
    if not any(needs):
        stats_L = logprob(head, backend)
    elif options.needs_sequences:
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
    """Compute statistics and gradients, each chunk's from logits that are computed once.

    Rows without an advantage come last: where nothing else gives them a gradient, their chunks
    leave dW alone, which every other one reads and writes as a whole.
    """
    out, gradients = _empty_stats(head), Gradients(head, needs)
    for chunk in head.chunks((tokens_L.advantages == 0).int().argsort(stable=True)):
        stats, tokens_C = head.row_stats(backend, chunk), tokens_L.at(chunk.at_C)
        _write(out, chunk.at_C, stats)
        grads = RowGrads(*token_gradients(stats.logp, stats.entropy, tokens_C, options))
        gradients.add(backend, chunk, stats, grads)
    return out, gradients


def nonzero_rows(grads: RowGrads) -> Tensor:
    """Return the positions of rows whose gradient is not exactly zero; a NaN counts as nonzero."""
    nonzero = grads.logp != 0
    if grads.entropy is not None:
        nonzero |= grads.entropy != 0
    return nonzero.nonzero().squeeze(1)


def compaction(kept_K: Tensor, total: int) -> Tensor:
    """Return the kept rows in the order in which their gradients are written, from the top.

    Those of the first K rows that are not kept are holes; the kept rows from further down fill
    them, and all others stay. Nothing has to be copied, and no row is written that another one
    still reads. No size here depends on the data, so a GPU's queue keeps running.
    """
    count = len(kept_K)
    hole_C = torch.ones(total, dtype=torch.bool, device=kept_K.device)
    hole_C[kept_K] = False
    hole_K = hole_C[:count]
    filler_K = kept_K[hole_K.cumsum(0) - 1 + count - hole_K.sum()]
    return torch.where(hole_K, filler_K, torch.arange(count, device=kept_K.device))


def product_dtype(hidden_TH: Tensor) -> torch.dtype:
    """Return the dtype that the matmuls return; the module's docstring says why."""
    return accumulation_dtype(hidden_TH.dtype) if hidden_TH.is_cuda else hidden_TH.dtype


def chunk_rows(hidden_TH: Tensor, weight_VH: Tensor) -> int:
    """Count the rows of logits that exist at a time."""
    dtype = product_dtype(hidden_TH)
    return most_rows(weight_VH.shape[0], dtype, on_cpu=not hidden_TH.is_cuda)


def most_rows(vocabulary: int, dtype: torch.dtype, *, on_cpu: bool) -> int:
    """Compute `chunk_rows` from sizes alone, to plan memory before there are tensors."""
    rows = LOGITS_BYTES // (vocabulary * dtype.itemsize)
    if on_cpu:
        most = max(CPU_COLUMN_BYTES, CPU_CHUNK_BYTES // vocabulary) // dtype.itemsize
        rows = min(rows, most)
    return max(1, rows)


def even_rows(total: int, most: int) -> int:
    """Count the rows of a chunk when ``total`` is cut into the fewest chunks of up to ``most``."""
    chunks = max(1, -(-total // most))
    return max(1, -(-total // chunks))


def weight_gradient_dtype(hidden_TH: Tensor, weight_VH: Tensor) -> torch.dtype:
    """Return the dtype of dW until it is handed to autograd.

    Depends on shapes only, as a compiler must know it. float32, but for up to three chunks of
    bfloat16 on a CPU. A CPU's matmul rounds each chunk's product to bfloat16 whatever it is added
    to; adding within the matmul rounds the sum instead, which is as often, and saves a float32
    matrix of twice the size of dW.
    """
    product, wide = product_dtype(hidden_TH), accumulation_dtype(hidden_TH.dtype)
    if product != wide and hidden_TH.shape[0] <= 3 * chunk_rows(hidden_TH, weight_VH):
        return product
    return wide


def _empty_stats(head: Head) -> RowStats:
    shape, device = head.rows_L.shape, head.rows_L.device
    return RowStats(*(torch.empty(shape, dtype=head.dtype, device=device) for _ in range(4)))


def _write(out: RowStats, at_C: Tensor, stats: RowStats) -> None:
    for out_L, values_C in zip(out, stats, strict=True):
        out_L[at_C] = values_C


def _matmul(a: Tensor, b: Tensor, *, out: Tensor, bias: Tensor | None = None) -> None:
    """Write a @ b + bias into ``out``, in its dtype; autocast leaves calls with out= alone."""
    if a.dtype != out.dtype:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
        if bias is not None:
            out += bias
    elif bias is not None:
        torch.addmm(bias, a, b, out=out)
    else:
        torch.mm(a, b, out=out)


def _add_matmul(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """Add a @ b to ``out``, in its dtype."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    elif out.is_cuda:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        # In slabs, so that the product is added while it is in the cache, and never exists whole.
        for start in range(0, len(out), SLAB_ROWS):
            slab = slice(start, start + SLAB_ROWS)
            out[slab] += torch.mm(a[slab], b)
