"""The policy's loss: a clipped policy term, a KL penalty and an entropy bonus, token by token.

What is computed without the full-vocabulary logits, and its equations, is in
`ttrl_kernels.linear_policy_loss`; here is what surrounds it: which log-probs the ratio is measured
against, the correction of the sampler's, and the weights that normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from torch import Tensor
from ttrl_kernels import PolicyLoss

from ttrl.learner.correction import corrected
from ttrl.learner.objective import Loss, Network, Scorer
from ttrl.models.packing import sequence_ids, sequence_weights, temperature_of
from ttrl.settings import LossSettings, Settings
from ttrl.types import PackedBatch, TrainSample

if TYPE_CHECKING:
    from ttrl.learner.trained_model import TrainedModel


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """PPO's clip, CISPO, SAPO or none, against the sampler or the policy before the updates."""

    settings: LossSettings
    temperature: float
    """Temperature of the rollouts: the policy that is trained is the one that was sampled from."""
    max_new_tokens: int
    """What ``aggregation = "constant"`` divides by, per sequence."""
    reference_logp: Callable[[PackedBatch], Tensor]
    """The starting model's log-probs of a batch's targets, for the KL penalty."""

    @classmethod
    def of(cls, settings: Settings, model: TrainedModel) -> Self:
        """Make the objective of a run, whose KL penalty is against where ``model`` started."""
        rollout = settings.rollout
        return cls(settings.loss, rollout.temperature, rollout.max_new_tokens, model.reference_logp)

    def has_gradient(self, sample: TrainSample) -> bool:
        """Return False for a zero weight or, without a KL or entropy term, for zero advantages.

        Their gradient is zero, exactly: such samples count in the token weights, and cost nothing.
        """
        every = self.settings.kl_coef > 0 or self.settings.entropy_coef > 0
        return sample.weight != 0 and (every or any(sample.advantages))

    def token_weights(self, samples: Sequence[TrainSample]) -> list[float]:
        """Return the weight of each token of each sample by ``loss.aggregation``."""
        return sequence_weights(samples, self.settings.aggregation, self.max_new_tokens)

    def prepared(
        self, steps: Sequence[Sequence[TrainSample]], score: Scorer
    ) -> list[Sequence[TrainSample]]:
        """Add the policy's own log-probs where ``loss.old_logprobs`` needs them.

        The first step starts from the same weights, so its ratio is 1 without them; only a
        correction of the sampler's ratio needs them there too.
        """
        known = 1 if self.settings.sampler_correction == "none" else 0
        if self.settings.old_logprobs == "sampler":
            known = len(steps)
        later = [s for step in steps[known:] for s in step if self.has_gradient(s)]
        if not later:
            return list(steps)
        own = (scores.logprobs for scores in score(later))
        return [
            *steps[:known],
            *(
                [replace(s, old_logprobs=next(own)) if self.has_gradient(s) else s for s in step]
                for step in steps[known:]
            ),
        ]

    def loss(self, network: Network, batch: PackedBatch) -> Loss:
        """Compute the loss of a micro-batch; docs/metrics.md explains its figures."""
        loss, sampler_logp_T = self.settings, batch.sampler_logp_T
        batch, cut_T = corrected(batch, loss.sampler_correction, loss.sampler_ratio_cap)
        result: PolicyLoss = network(
            batch,
            temperature=temperature_of(batch, self.temperature),
            advantages_T=batch.advantages_T,
            token_weights_T=batch.token_weights_T,
            old_logp_T=sampler_logp_T if loss.old_logprobs == "sampler" else batch.old_logp_T,
            ref_logp_T=self.reference_logp(batch) if loss.kl_coef > 0 else None,
            policy=loss.policy,
            ratio_level=loss.ratio_level,
            sequence_ids_T=sequence_ids(batch) if loss.ratio_level == "sequence" else None,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            kl=loss.kl_estimator,
            kl_coef=loss.kl_coef,
            entropy_coef=loss.entropy_coef,
        )
        # In float64, where the square of a gap of 1e-7 is not lost beside 1.
        gap_T = (result.logp_T - sampler_logp_T).double()
        return Loss(
            loss=result.loss,
            means={
                "clip_fraction": result.clipped_T,
                "kl": gap_T.new_zeros(gap_T.shape) if result.kl_T is None else result.kl_T,
                "entropy": result.entropy_T,
                "sampler_kl": gap_T.expm1() - gap_T,  # k3: never negative, 0 where both agree
                "sampler_log_ratio": gap_T,
                "corrected": cut_T,
            },
            largest={"sampler_max_gap": gap_T.abs()},
        )
