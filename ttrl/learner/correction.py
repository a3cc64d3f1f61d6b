"""Importance weights for tokens that an engine sampled with other log-probs than the policy's own.

An engine computes in another order or type than the trainer, so it samples from a distribution mu
that is not quite the policy pi. Where PPO's ratio is measured against pi (its log-probs before the
updates), each token's policy term can be weighted by w = pi / mu, which multiplies its advantage;
KL, entropy and the normalization stay as they are.

- truncate: min(w, cap). Truncated importance sampling (Yao et al. 2025, "Your Efficient RL
  Framework Secretly Brings You Off-Policy RL Training"; the idea is Ionides 2008).
- mask: w where 1/cap <= w <= cap, else 0. IcePop (Ring-1T, arXiv 2510.18855; there the two bounds
  are separate settings).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch

from ttrl.types import PackedBatch

Correction = Literal["none", "truncate", "mask"]


def importance_weights(
    log_ratio_T: torch.Tensor, kind: Correction, cap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the weight of each token, and a bool per token: whether the cap has changed it.

    Args:
        log_ratio_T: log(pi / mu) in nats, not clipped.
        kind: see the top of this file; "none" weights every token with 1.
        cap: more than 1.
    """
    ratio_T, limit = log_ratio_T.exp(), math.log(cap)
    if kind == "truncate":
        return ratio_T.clamp(max=cap), log_ratio_T > limit
    if kind == "mask":
        outside_T = log_ratio_T.abs() > limit
        return ratio_T.masked_fill(outside_T, 0.0), outside_T
    return torch.ones_like(ratio_T), torch.zeros_like(ratio_T, dtype=torch.bool)


def corrected(batch: PackedBatch, kind: Correction, cap: float) -> tuple[PackedBatch, torch.Tensor]:
    """Weight a batch's advantages; return it, and a bool per token: whether the cap changed it."""
    if kind == "none":
        return batch, torch.zeros_like(batch.targets_T, dtype=torch.bool)
    if batch.old_logp_T is None:
        raise ValueError(f"sampler_correction={kind!r} needs the policy's own log-probs")
    log_ratio_T = batch.old_logp_T - batch.sampler_logp_T
    weights_T, cut_T = importance_weights(log_ratio_T, kind, cap)
    return replace(batch, advantages_T=batch.advantages_T * weights_T), cut_T
