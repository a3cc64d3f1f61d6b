"""The section [loss]: what an optimizer step minimizes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Section


class LossSettings(Section):
    """The loss: policy term, KL penalty, entropy bonus, and the mean over tokens."""

    policy: Literal[
        "ppo_clip",
        "cispo",
        "sapo",
        "none",
    ] = "ppo_clip"
    """Policy term of a token, from the ratio policy / sampler r and the advantage A. ppo_clip: the
    worse of r x A and clip(r) x A. cispo: log-prob x A, weighted by clip(r): a clipped token keeps
    its gradient. sapo: A, weighted by a gate that fades out away from r = 1. none: r x A."""
    ratio_level: Literal["token", "sequence"] = "token"
    """Whether each token has its own ratio, or all of a sequence their geometric mean (GSPO, whose
    clips are of the order of 3e-4)."""
    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """ppo_clip and cispo: the ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """ppo_clip and cispo: the ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Dual-clip PPO: bounds the loss of tokens with a negative advantage; None is off."""
    old_logprobs: Literal["sampler", "policy"] = "sampler"
    """What the PPO ratio is measured against: the log-probs that the engine sampled with, or the
    policy's own before a step's first update, which cost a forward pass for the later ones."""
    sampler_correction: Literal["none", "truncate", "mask"] = "none"
    """Weight of each token's policy term: policy / sampler before a step's first update.
    truncate: at most ``sampler_ratio_cap`` (TIS). mask: 0 where it is more than that or less than
    its inverse (IcePop). Needs ``old_logprobs = "policy"``."""
    sampler_ratio_cap: Annotated[float, Field(gt=1)] = 2.0
    """See ``sampler_correction``."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty against the starting model. If > 0, a copy of it is kept in memory,
    except with ``lora.rank``."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of a token's KL, with d = log-prob of the starting model - log-prob: k1: -d. k2: d² / 2. k3:
    exp(d) - d - 1."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: every token of the update weighs the same (DAPO). sequence_mean: every
    sequence weighs the same (GRPO). constant: divided by sequences x max_new_tokens (Dr. GRPO)."""
