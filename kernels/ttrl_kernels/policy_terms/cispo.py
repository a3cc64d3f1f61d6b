"""REINFORCE with a capped importance weight (CISPO, 2506.13585)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData


def cispo(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −stop_gradient(clip(r, 1−low, 1+high))·A·logp.

    A clipped token keeps a gradient, only its weight is capped. TRL has one bound, on the ratio's
    value: min(r, cap) is low = 1, high = cap − 1.
    """
    low, high = options.clip_low, options.clip_high
    clipped = (ratio < 1 - low) | (ratio > 1 + high)
    return -ratio.detach().clamp(1 - low, 1 + high) * tokens.advantages * logp, clipped
