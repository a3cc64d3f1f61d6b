"""Protocol of the row backends: two operations on a chunk of logits, each row by itself.

A row is the raw logits u = W x + b of one token. The operations own the rest of the way,
z = softcap(u) / τ with softcap(u) = s·tanh(u/s), and know nothing of any loss: what a loss wants
of a row arrives as two numbers, dL/dlogp and dL/dentropy.

Shapes by suffix: ``_C`` rows of a chunk, ``_K`` those of them that are kept, ``_V`` vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class RowStats(NamedTuple):
    """Four numbers per row, float32, or float64 for float64 logits.

    A row with a NaN, a +inf or nothing but −inf has no distribution: its log_sum, logp and entropy
    are NaN, and its row_max means nothing.

    lse = row_max + log_sum. The two stay apart because at large logits their sum would round
    log_sum away: at 1e4, fp32 steps are 1e-3 wide.
    """

    row_max: Tensor
    """max_v z_v."""
    log_sum: Tensor
    """log Σ_v exp(z_v - row_max)."""
    logp: Tensor
    """z_y - lse, in nats."""
    entropy: Tensor
    """-Σ_v p_v log p_v, in nats."""

    def at(self, index: Tensor) -> RowStats:
        """Select the rows at these positions."""
        return RowStats(*(x[index] for x in self))


class RowGrads(NamedTuple):
    """The loss's gradients by the log-prob and the entropy of each row."""

    logp: Tensor
    """dL/dlogp."""
    entropy: Tensor | None
    """dL/dentropy; None where no loss term reads the entropy."""

    def at(self, index: Tensor) -> RowGrads:
        """Select the rows at these positions."""
        return RowGrads(self.logp[index], None if self.entropy is None else self.entropy[index])


class RowBackend(Protocol):
    """A module with the two row operations."""

    def row_stats(
        self, logits_CV: Tensor, targets_C: Tensor, temperature_C: Tensor, softcap: float | None
    ) -> RowStats:
        """Compute the statistics of each row; leaves the logits as they are."""
        ...

    def row_grad_(
        self,
        logits_CV: Tensor,
        rows_K: Tensor,
        targets_K: Tensor,
        temperature_K: Tensor,
        softcap: float | None,
        stats_K: RowStats,
        grads_K: RowGrads,
        dtype: torch.dtype,
    ) -> Tensor:
        """Write dL/du of some rows over the logits, [K, V] in a dtype no wider than theirs.

        Row k of the result is the gradient of logits row rows_K[k], which is either k or at least
        K, and never twice the same. So a backend that works on all rows at once may write the
        result where the first K rows of logits are, and no row is lost before it was read.
        """
        ...
