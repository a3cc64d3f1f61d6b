"""The importance-weighted advantage, without a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData


def unclipped(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −r·A: on-policy its gradient is that of REINFORCE, −A·∇logp."""
    return -ratio * tokens.advantages, torch.zeros_like(ratio, dtype=torch.bool)
