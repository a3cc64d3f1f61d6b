"""A KL penalty in the reward of every token, with a fixed or an adaptive coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from ttrl_kernels.kl_estimators import kl_estimate

from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import RewardSettings
from ttrl.types import TrainSample

Penalties = list[tuple[float, ...]]
"""Per sample, what each of its trained tokens loses."""

LARGEST_ERROR = 0.2
"""The coefficient changes by no more than this share per ``kl_horizon`` samples, or step."""


class KlInReward:
    """Lowers each token's reward by c · KL(policy ‖ starting model) (arXiv 1909.08593)."""

    def __init__(self, reward: RewardSettings, policy: TrainedModel) -> None:
        """Begin with ``reward.kl_coef``; ``policy`` knows where it started."""
        self.reward, self.policy, self.coef = reward, policy, reward.kl_coef

    def penalties(self, samples: Sequence[TrainSample]) -> Penalties:
        """Compute what every trained token loses, at the policy's present weights."""
        if self.reward.kl_coef == 0:
            return [(0.0,) * len(s.logprobs) for s in samples]
        own = self.policy.logprobs(samples)
        start = self.policy.per_token(samples, lambda batch: (self.policy.reference_logp(batch),))
        return [
            tuple((self.coef * self._estimate(logp, ref)).tolist())
            for logp, (ref,) in zip(own, start, strict=True)
        ]

    def _estimate(self, logp: Sequence[float], ref: Sequence[float]) -> torch.Tensor:
        own_n, ref_n = (torch.tensor(x, dtype=torch.float64) for x in (logp, ref))
        return kl_estimate(own_n, ref_n, self.reward.kl_estimator)

    def adapt(self, penalties: Penalties) -> dict[str, float]:
        """Move the coefficient towards ``reward.kl_target``; return the figures of the step.

            c ← c · (1 + clip(KL / target − 1, ±0.2) · min(1, samples / horizon))

        KL is the mean over samples of the mean over their tokens.
        """
        if self.reward.kl_coef == 0:
            return {}
        coef, target = self.coef, self.reward.kl_target
        kl = fmean(fmean(tokens) for tokens in penalties) / coef if coef else 0.0
        if target is not None:
            error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
            self.coef *= 1 + error * min(1.0, len(penalties) / self.reward.kl_horizon)
        return {"reward/kl": kl, "reward/kl_coef": coef}
