"""PPO's clipped surrogate (1707.06347), with the dual clip of 1912.09729."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData


def ppo_clip(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute the clipped surrogate; where the clip decides, the gradient is exactly zero.

    m = min(r·A, clip(r, 1−low, 1+high)·A);  the term is −m,
    or with a dual clip c, for A < 0:  −max(m, c·A)

    For c > 1 + high that is the two-sided clip (INTELLECT-2, 2505.07291; TRL's delta), which puts
    min(r, c) in the place of the first r.
    """
    advantages = tokens.advantages
    low, high, dual = options.clip_low, options.clip_high, options.dual_clip
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    if dual is not None:
        bounded = torch.maximum(objective, dual * advantages)
        objective = torch.where(advantages < 0, bounded, objective)
        clipped = clipped | ((advantages < 0) & (ratio > dual))
    return -objective, clipped
