"""REINFORCE with a capped importance weight (CISPO, 2506.13585)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.loss_math import PolicyOptions


def cispo(
    ratio: Tensor, logp: Tensor, advantages: Tensor, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −stop_gradient(clip(r, 1−low, 1+high))·A·logp.

    A clipped token keeps a gradient, only its weight is capped.
    """
    low, high = options.clip_low, options.clip_high
    clipped = (ratio < 1 - low) | (ratio > 1 + high)
    return -ratio.detach().clamp(1 - low, 1 + high) * advantages * logp, clipped
