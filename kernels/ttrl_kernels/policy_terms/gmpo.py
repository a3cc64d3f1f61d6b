"""One ratio per sequence, the geometric mean of clipped token ratios (GMPO, 2507.20673)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ttrl_kernels.ratios import clamp_log_ratio, old_logprobs, sequence_mean

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData


def gmpo(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −R·A, with a ratio R for each sequence; the bounds are of log-ratios.

    l_t = clamp(logp_t − old_t, ±20),  s = sign(A_t)
    R = exp(mean over the sequence of s·min(s·l_t, s·clip(l_t, −low, high)))

    The mean over sequences of the means over tokens is the paper's loss. A clipped token has no
    gradient, and one with A = 0 adds nothing to the mean but its place.
    """
    log_ratio, sign = clamp_log_ratio(logp - old_logprobs(logp, tokens)), tokens.advantages.sign()
    inside = log_ratio.clamp(-options.clip_low, options.clip_high)
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * inside)
    clipped = ((sign > 0) & (log_ratio > options.clip_high)) | (
        (sign < 0) & (log_ratio < -options.clip_low)
    )
    of_sequence = sequence_mean(pessimistic, tokens.sequence_ids).exp()
    return -of_sequence * tokens.advantages, clipped
