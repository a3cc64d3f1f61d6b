"""Importance weights for tokens that an engine sampled with other log-probs than the policy's own.

An engine computes in another order or type than the trainer, so it samples from a distribution mu
that is not quite the policy pi. Where PPO's ratio is measured against pi (its log-probs before the
updates), each token's policy term can be weighted by w = pi / mu, which multiplies its advantage;
KL, entropy and the normalization stay as they are. The weight is the token's own ratio, or for all
of a sequence the product of its tokens' ratios or their geometric mean.

- truncate: min(w, cap). Truncated importance sampling (Yao et al. 2025, "Your Efficient RL
  Framework Secretly Brings You Off-Policy RL Training"; the idea is Ionides 2008).
- mask: w where floor <= w <= cap, else 0. IcePop (Ring-1T, arXiv 2510.18855).

Rejection drops what engine and policy disagree about, whatever is weighted: tokens, or sequences by
the sum, mean or largest of their tokens' k1, k2 or k3, with d = log(pi / mu):

    k1 = d, compared by its magnitude      k2 = d² / 2      k3 = exp(d) - d - 1

All of it is a function of one whole optimizer step, in float64, and carries no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ttrl.settings import LossSettings

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEVELS: dict[str, Callable[[Values], Values]] = {
    "token": lambda d: d,
    "sequence_product": lambda d: np.full_like(d, d.sum()),
    "sequence_geometric": lambda d: np.full_like(d, d.mean()),
}
"""The log-ratio that a token's weight is made of, from those of its sequence."""

ESTIMATES: dict[str, Callable[[Values], Values]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: np.expm1(d) - d,
}

DISAGREEMENTS: dict[str, Callable[[Values], Values]] = {
    "token": np.abs,
    "sequence_sum": lambda k: np.full_like(k, abs(k.sum())),
    "sequence_mean": lambda k: np.full_like(k, abs(k.mean())),
    "sequence_max": lambda k: np.full_like(k, np.abs(k).max()),
}
"""What is compared with the bound, from the estimates of a sequence's tokens."""


def importance_weights(
    log_ratios: Sequence[Values], loss: LossSettings
) -> tuple[list[Values], list[Flags]]:
    """Compute each token's weight, and whether a bound has changed it, for an optimizer step.

    Args:
        log_ratios: log(pi / mu) of the tokens of each sequence, in nats.
        loss: ``sampler_correction`` and what belongs to it; "none" weights every token with 1.
    """
    if loss.sampler_correction == "none":
        return [np.ones_like(d) for d in log_ratios], [np.zeros(d.shape, bool) for d in log_ratios]
    levels = [LEVELS[loss.sampler_level](d) for d in log_ratios]
    cap, floor = loss.sampler_ratio_cap, loss.sampler_ratio_floor
    high = math.log(cap)
    if loss.sampler_correction == "truncate":
        weights = [np.exp(np.minimum(level, high)) for level in levels]
        changed = [level > high for level in levels]
    else:
        low = -high if floor is None else math.log(floor) if floor else -math.inf
        changed = [(level > high) | (level < low) for level in levels]
        weights = [
            np.where(out, 0.0, np.exp(np.minimum(level, high)))
            for level, out in zip(levels, changed, strict=True)
        ]
    if loss.sampler_normalize:
        each = weights if loss.sampler_level == "token" else [w[:1] for w in weights]
        mean = float(np.concatenate(each).mean())
        if mean > 0:  # else all are masked, and stay 0
            weights = [w / mean for w in weights]
    return weights, changed


def rejected(log_ratios: Sequence[Values], loss: LossSettings) -> list[Flags]:
    """Say which tokens ``sampler_rejection`` drops, in each sequence; "none" drops none."""
    if loss.sampler_rejection == "none":
        return [np.zeros(d.shape, bool) for d in log_ratios]
    estimate, disagreement = (
        ESTIMATES[loss.sampler_rejection_kl],
        DISAGREEMENTS[loss.sampler_rejection],
    )
    with np.errstate(over="ignore"):  # an infinite k3 is above any bound
        return [
            disagreement(estimate(d)) > (loss.sampler_rejection_bound or 0.0) for d in log_ratios
        ]
