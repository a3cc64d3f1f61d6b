"""Rows of which only a few tokens could be drawn: the sampler's top-k, top-p or min-p.

Such a row's distribution is the softmax over its support S alone:

    logp_t = z_y − log Σ_{v ∈ S_t} e^{z_v},    z = softcap(u) / τ

and it has no gradient outside of it. So after the matmul a row is one of a small vocabulary: its
members' logits are read, [C, M] in place of [C, V], and the row backends do with them what they do
with any. Which tokens those are is data: a policy that computed them anew would round its way to
others.

Shapes by suffix: ``_C`` rows of a chunk, ``_K`` those of them that are kept, ``_M`` members of a
support, padded with −1, ``_V`` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Members:
    """The supports of a chunk's rows, and their logits."""

    ids_CM: Tensor
    """Token ids; on padding the target's, so that writing there changes no other token."""
    padding_CM: Tensor
    """bool."""
    target_C: Tensor
    """The target's place among the members."""
    logits_CM: Tensor
    """softcap(u); -inf on padding, where p = 0."""
    slope_CM: Tensor | None
    """The softcap's derivative; None without one."""

    @classmethod
    def of(
        cls,
        logits_CV: Tensor,
        support_CM: Tensor,
        targets_C: Tensor,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Self:
        """Read the members' logits u, and compute with them in ``dtype``."""
        padding_CM = support_CM < 0
        ids_CM = torch.where(padding_CM, targets_C[:, None], support_CM)
        logits_CM, slope_CM = logits_CV.gather(1, ids_CM).to(dtype), None
        if softcap is not None:
            tanh_CM = (logits_CM / softcap).tanh()
            logits_CM, slope_CM = softcap * tanh_CM, 1 - tanh_CM.square()
        return cls(
            ids_CM=ids_CM,
            padding_CM=padding_CM,
            target_C=(support_CM == targets_C[:, None]).int().argmax(1),
            logits_CM=logits_CM.masked_fill(padding_CM, -torch.inf),
            slope_CM=slope_CM,
        )

    def spread(self, grads_KM: Tensor, rows_K: Tensor, out_KV: Tensor) -> None:
        """Write dL/du of some rows: from dL/d softcap(u) of their members, and 0 elsewhere."""
        if self.slope_CM is not None:
            grads_KM = grads_KM * self.slope_CM[rows_K]
        target_K1 = grads_KM.gather(1, self.target_C[rows_K, None])
        grads_KM = torch.where(self.padding_CM[rows_K], target_K1, grads_KM)
        out_KV.zero_().scatter_(1, self.ids_CM[rows_K], grads_KM.to(out_KV.dtype))
