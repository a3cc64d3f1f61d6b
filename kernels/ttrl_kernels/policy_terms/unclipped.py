"""The importance-weighted advantage, without a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.loss_math import PolicyOptions


def unclipped(
    ratio: Tensor, logp: Tensor, advantages: Tensor, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −r·A: on-policy its gradient is that of REINFORCE, −A·∇logp."""
    return -ratio * advantages, torch.zeros_like(ratio, dtype=torch.bool)
