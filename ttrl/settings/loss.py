"""The section [loss]: what an optimizer step minimizes; docs/losses.md has the equations."""

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
        "gmpo",
        "dppo_tv",
        "dppo_kl",
        "none",
    ] = "ppo_clip"
    """Policy term of a token, from the ratio policy / sampler r and the advantage A. ppo_clip: the
    worse of r x A and clip(r) x A. cispo: log-prob x A, weighted by clip(r): a clipped token keeps
    its gradient. sapo: A, weighted by a gate that fades out away from r = 1. gmpo: A x the
    geometric mean of a sequence's clipped ratios. dppo_tv, dppo_kl: r x log-prob x A, unless the
    token's probability, or its divergence, has moved too far. none: r x A."""
    ratio_level: Literal["token", "sequence"] = "token"
    """Whether each token has its own ratio, or all of a sequence their geometric mean (GSPO, whose
    clips are of the order of 3e-4)."""
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """ppo_clip and cispo: the ratio is clipped below at 1 - clip_low, at 1 not at all. gmpo: the
    log-ratio at -clip_low. dppo_tv and dppo_kl: how far down a token with A < 0 may go."""
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """The same above: of cispo with TRL's one bound on the ratio, that bound less 1."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Dual-clip PPO: bounds the loss of tokens with a negative advantage; None is off."""
    off_policy_mask: Annotated[float, Field(ge=0)] | None = None
    """Drops the policy term of sequences with A < 0 that the policy has left behind: whose old
    log-probs are higher, in the mean over tokens, by more than this (DeepSeek-V3.2). None: off."""
    old_logprobs: Literal["sampler", "policy"] = "sampler"
    """What the PPO ratio is measured against: the log-probs that the engine sampled with, or the
    policy's own before a step's first update, which cost a forward pass for the later ones."""
    sampler_correction: Literal["none", "truncate", "mask"] = "none"
    """Weight of the policy term: policy / sampler before a step's first update. truncate: at most
    ``sampler_ratio_cap`` (TIS). mask: 0 where it is more than that or less than
    ``sampler_ratio_floor`` (IcePop). Needs ``old_logprobs = "policy"``."""
    sampler_level: Literal["token", "sequence_product", "sequence_geometric"] = "token"
    """Of ``sampler_correction``: each token has its own weight, or all of a sequence the product of
    its tokens' ratios, or their geometric mean."""
    sampler_ratio_cap: Annotated[float, Field(gt=1)] = 2.0
    """See ``sampler_correction``."""
    sampler_ratio_floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    """See ``sampler_correction``; None is 1 / ``sampler_ratio_cap``."""
    sampler_normalize: bool = False
    """Divides the weights by their mean over the optimizer step: over its tokens or sequences."""
    sampler_rejection: Literal["none", "token", "sequence_sum", "sequence_mean", "sequence_max"] = (
        "none"
    )
    """Drops the policy term of tokens that engine and policy disagree about, or of sequences, by
    the sum, mean or largest of their tokens' figures, above ``sampler_rejection_bound``."""
    sampler_rejection_kl: Literal["k1", "k2", "k3"] = "k3"
    """Of ``sampler_rejection``, with d = log-prob by the policy - by the sampler: k1: |d|, of a
    sequence |sum of d|, and so on. k2: d² / 2. k3: exp(d) - d - 1."""
    sampler_rejection_bound: Annotated[float, Field(gt=0)] | None = None
    """See ``sampler_rejection``, in nats."""
    entropy_mask: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of an optimizer step's tokens, those of the highest entropy, that have a policy term;
    0.2 in the paper. None: all."""
    covariance: Literal["none", "clip", "kl"] = "none"
    """Holds back the tokens whose log-prob and advantage rise together, which cost entropy. clip:
    some of those with a covariance in ``covariance_bounds`` have no policy term (Clip-Cov). kl:
    those of the highest pay ``covariance_kl_coef`` x |log r| (KL-Cov)."""
    covariance_share: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Share of an optimizer step's tokens that are held back; at least one is."""
    covariance_bounds: Annotated[tuple[float, float], Field(strict=False)] = (1.0, 5.0)
    """See ``covariance``."""
    covariance_kl_coef: Annotated[float, Field(gt=0)] = 1.0
    """See ``covariance``."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty against the starting model. If > 0, a copy of it is kept in memory,
    except with ``lora.rank``."""
    kl_estimator: Literal["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"] = "k3"
    """Of a token's KL, with d = log-prob of the starting model - log-prob: k1: -d. abs: |d|. k2:
    d² / 2. k3: exp(d) - d - 1. With a +: that value, and the gradient of k2."""
    kl_bias_correction: bool = False
    """Multiplies a token's KL by its ratio r: of tokens that an older policy sampled, that is the
    KL of this one (DeepSeek-V3.2)."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus; with ``entropy_target`` what it starts from."""
    entropy_target: Annotated[float, Field(gt=0)] | None = None
    """Entropy in nats below which the bonus acts: its weight rises by ``entropy_coef_step`` after
    every optimizer step whose mean entropy is at most this, falls by as much after the others, and
    acts only after the former (Skywork-OR1; 0.2 there). None: the weight stays what it is."""
    entropy_coef_step: Annotated[float, Field(gt=0)] = 0.005
    """See ``entropy_target``."""
    entropy_coef_max: Annotated[float, Field(gt=0)] = 1.0
    """The most that ``entropy_target`` raises the weight to."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: every token of the update weighs the same (DAPO). sequence_mean: every
    sequence weighs the same (GRPO). constant: divided by sequences x max_new_tokens (Dr. GRPO)."""

    @property
    def compares_tokens(self) -> bool:
        """Whether a token's part depends on other sequences: then all must be scored."""
        return self.entropy_mask is not None or self.covariance != "none" or self.sampler_normalize

    @property
    def corrects(self) -> bool:
        """Whether the sampler's mismatch changes a token's policy term."""
        return self.sampler_correction != "none" or self.sampler_rejection != "none"
