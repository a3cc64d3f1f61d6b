"""A soft gate in the place of a clip (SAPO, 2511.20347)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData

TAU_POSITIVE, TAU_NEGATIVE = 1.0, 1.05
"""The paper's: tokens with a negative advantage lose their weight sooner."""


def sapo(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −(4/τ)·σ(τ·(r − 1))·A, with τ by the sign of A.

    At r = 1 its gradient is that of r·A; away from it the gate fades it out, so no token is
    clipped.
    """
    tau = torch.full_like(ratio, TAU_NEGATIVE).masked_fill(tokens.advantages > 0, TAU_POSITIVE)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return -gate * tokens.advantages, torch.zeros_like(ratio, dtype=torch.bool)
