"""REINFORCE on tokens whose probability has not moved too far (DPPO, 2602.04879).

PPO bounds the ratio, which a rare token leaves at the slightest move and a likely one never; here
a divergence of the two policies decides, estimated from the sampled token as if all others were
one: their total variation, or their KL divergence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ttrl_kernels.ratios import old_logprobs

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData

RATIO_LIMIT = 20.0
"""Largest weight of a token."""


def dppo_tv(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −stop_gradient(min(r, 20))·A·logp, where p − p_old is within bounds, else 0.

    dropped:  p − p_old > high for A > 0,  p − p_old < −low for A < 0
    """
    moved = _moved(logp, tokens)
    return _kept(ratio, logp, tokens, _away(moved, moved.abs(), tokens, options))


def dppo_kl(
    ratio: Tensor, logp: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Compute −stop_gradient(min(r, 20))·A·logp, where the divergence is within bounds, else 0.

    b = p_old·log(p_old / p) + (1 − p_old)·log((1 − p_old) / (1 − p))
    dropped:  b > high for A > 0 and p > p_old,  b > low for A < 0 and p < p_old
    """
    old = old_logprobs(logp, tokens)
    rest, old_rest = _others(logp), _others(old)
    divergence = old.exp() * (old - logp.detach()) + old_rest * (old_rest.log() - rest.log())
    return _kept(ratio, logp, tokens, _away(_moved(logp, tokens), divergence, tokens, options))


def _moved(logp: Tensor, tokens: TokenData) -> Tensor:
    """Compute p − p_old."""
    return logp.detach().exp() - old_logprobs(logp, tokens).exp()


def _others(logp: Tensor) -> Tensor:
    """Compute 1 − p, at least what rounding leaves of it: then its logarithm is finite."""
    return (-logp.detach().expm1()).clamp(min=torch.finfo(logp.dtype).eps)


def _away(moved: Tensor, divergence: Tensor, tokens: TokenData, options: PolicyOptions) -> Tensor:
    """Say which tokens have gone too far in the direction in which the advantage pushes them."""
    up, down = tokens.advantages > 0, tokens.advantages < 0
    too_high = up & (moved > 0) & (divergence > options.clip_high)
    return too_high | (down & (moved < 0) & (divergence > options.clip_low))


def _kept(ratio: Tensor, logp: Tensor, tokens: TokenData, dropped: Tensor) -> tuple[Tensor, Tensor]:
    term = -ratio.detach().clamp(max=RATIO_LIMIT) * tokens.advantages * logp
    return torch.where(dropped, torch.zeros_like(term), term), dropped
