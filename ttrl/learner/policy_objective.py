"""The policy's loss: a policy term, a KL penalty and an entropy bonus, token by token.

What is computed without the full-vocabulary logits, and its equations, is in
`ttrl_kernels.linear_policy_loss`; here is what surrounds it: which log-probs the ratio is measured
against, what a whole optimizer step decides about its tokens, and the weights that normalize.
docs/losses.md has it all in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor
from ttrl_kernels import PolicyLoss

from ttrl.learner.entropy_coefficient import EntropyCoefficient
from ttrl.learner.objective import Loss, Network, PreparedStep, Scorer
from ttrl.learner.step_tokens import prepare_step
from ttrl.models.packing import sampled_from, sequence_weights
from ttrl.settings import LossSettings, Settings
from ttrl.types import PackedBatch, TrainSample, UpdateResult

if TYPE_CHECKING:
    from ttrl.learner.trained_model import TrainedModel


@dataclass(slots=True)
class PolicyObjective:
    """A policy term of `ttrl_kernels`, against the sampler or the policy before the updates."""

    settings: LossSettings
    temperature: float
    """Temperature of the rollouts: the policy that is trained is the one that was sampled from."""
    max_new_tokens: int
    """What ``aggregation = "constant"`` divides by, per sequence."""
    seed: int
    """Of the run, for what is chosen at random."""
    reference_logp: Callable[[PackedBatch], Tensor]
    """The starting model's log-probs of a batch's targets, for the KL penalty."""
    entropy: EntropyCoefficient = field(init=False)
    """The weight of the entropy bonus."""

    def __post_init__(self) -> None:
        """Start the entropy bonus from its setting."""
        self.entropy = EntropyCoefficient(self.settings)

    @classmethod
    def of(cls, settings: Settings, model: TrainedModel) -> Self:
        """Make the objective of a run, whose KL penalty is against where ``model`` started."""
        rollout = settings.rollout
        return cls(
            settings.loss,
            rollout.temperature,
            rollout.max_new_tokens,
            settings.seed,
            model.reference_logp,
        )

    def has_gradient(self, sample: TrainSample) -> bool:
        """Return False for a zero weight or, without a KL or entropy term, for zero advantages.

        Their gradient is zero, exactly: such samples count in the token weights, and cost nothing.
        """
        return self._reached(sample, bonus=self.entropy.value > 0)

    def _reached(self, sample: TrainSample, *, bonus: bool) -> bool:
        """Say whether a term of the loss reaches the sample, with an entropy bonus or without."""
        every = bonus or self.settings.kl_coef > 0
        penalized = sample.ratio_penalties is not None and any(sample.ratio_penalties)
        return sample.weight != 0 and (every or penalized or any(sample.advantages))

    def token_weights(self, samples: Sequence[TrainSample]) -> list[float]:
        """Return the weight of each token of each sample by ``loss.aggregation``."""
        return sequence_weights(samples, self.settings.aggregation, self.max_new_tokens)

    def prepared(self, steps: Sequence[Sequence[TrainSample]], score: Scorer) -> list[PreparedStep]:
        """Score the policy where something needs that, and decide what whole steps decide.

        The first step that is taken starts from the same weights, so its ratio against the
        policy's own log-probs is 1 without them.
        """
        bonus = self.entropy.may_rise
        taken = [i for i, x in enumerate(steps) if any(self._reached(s, bonus=bonus) for s in x)]
        later = taken[1:] if self.settings.old_logprobs == "policy" else []
        wanted = {
            (i, j): sample
            for i in taken
            for j, sample in enumerate(steps[i])
            if self._scored(sample, against_own=i in later)
        }
        found = score(list(wanted.values())) if wanted else []
        scores = dict(zip(wanted, found, strict=True))
        return [
            prepare_step(
                step,
                [scores.get((i, j)) for j in range(len(step))],
                self.settings,
                against_own=i in later,
                seed=self.seed,
            )
            for i, step in enumerate(steps)
        ]

    def _scored(self, sample: TrainSample, *, against_own: bool) -> bool:
        """Say whether the policy's scores of a sample are needed."""
        if self.settings.compares_tokens:
            return sample.weight != 0
        needed = against_own or self.settings.corrects
        return needed and self._reached(sample, bonus=self.entropy.may_rise)

    def loss(self, network: Network, batch: PackedBatch) -> Loss:
        """Compute the loss of a micro-batch; docs/metrics.md explains its figures."""
        loss, sampler_logp_T = self.settings, batch.sampler_logp_T
        advantages_T, factors_T = batch.advantages_T, batch.policy_factors_T
        result: PolicyLoss = network(
            batch,
            **sampled_from(batch, self.temperature),
            advantages_T=advantages_T if factors_T is None else advantages_T * factors_T,
            token_weights_T=batch.token_weights_T,
            old_logp_T=sampler_logp_T if loss.old_logprobs == "sampler" else batch.old_logp_T,
            ref_logp_T=self.reference_logp(batch) if loss.kl_coef > 0 else None,
            policy=loss.policy,
            ratio_level=loss.ratio_level,
            sequence_ids_T=batch.samples_T,
            ratio_penalty_T=batch.ratio_penalty_T,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            off_policy_mask=loss.off_policy_mask,
            kl=loss.kl_estimator,
            kl_coef=loss.kl_coef,
            kl_bias_correction=loss.kl_bias_correction,
            entropy_coef=self.entropy.value,
        )
        # In float64, where the square of a gap of 1e-7 is not lost beside 1.
        gap_T = (result.logp_T - sampler_logp_T).double()
        return Loss(
            loss=result.loss,
            means={
                "clip_fraction": result.clipped_T,
                "kl": gap_T.new_zeros(gap_T.shape) if result.kl_T is None else result.kl_T,
                "entropy": result.entropy_T,
                "entropy_coef": gap_T.new_full(gap_T.shape, self.entropy.value),
                "sampler_kl": gap_T.expm1() - gap_T,  # k3: never negative, 0 where both agree
                "sampler_log_ratio": gap_T,
            },
            largest={"sampler_max_gap": gap_T.abs()},
        )

    def after_step(self, result: UpdateResult) -> None:
        """Move the entropy bonus."""
        self.entropy.after_step(result.means["entropy"])

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on, as JSON."""
        return {"entropy": self.entropy.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.entropy.load_state(state["entropy"])
