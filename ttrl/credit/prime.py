"""Implicit process rewards: PRIME (arXiv 2502.01456)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import fmean

import torch

from ttrl.credit.credit import Assigned
from ttrl.credit.outcomes import Outcomes, outcomes
from ttrl.credit.whitening import whitened_by_part
from ttrl.learner.implicit_reward_objective import ImplicitRewardObjective
from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import PrimeSettings, Settings
from ttrl.types import (
    CompletionGroup,
    Estimate,
    PackedBatch,
    TrainSample,
    UpdateResult,
    UserError,
)

TokenNumbers = Sequence[tuple[float, ...]]
"""Per sample, one number per trained token."""


class Prime:
    """Pays tokens by how much more a reward model likes them than the starting model does.

    The reward model learns from the answers' rewards alone that it shall like those that agree
    with the vote.
    """

    def __init__(self, settings: Settings, policy: TrainedModel, prm: TrainedModel) -> None:
        """Read [prime]; the starting model is the reference of ``policy``."""
        self.settings, self.policy, self.prm = settings, policy, prm
        self.models = {"prm": prm}
        self.objective = ImplicitRewardObjective(settings.prime.beta, self._reference_logp)

    def assign(
        self, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate], step: int
    ) -> Assigned:
        """Score the samples, train the reward model on them, and compute advantages.

        They are the leave-one-out advantages of process rewards and of the outcome, summed from
        each token to the end, and whitened over all trained tokens.
        """
        found, prime = outcomes(groups, estimates, self.settings, step), self.settings.prime
        if not found.samples:
            return Assigned([], found.chosen)
        refuse_other_outcomes(found, self.settings.reward.estimator)
        learners = [
            replace(sample, returns=(reward,) * len(sample.logprobs))
            for sample, reward in zip(found.samples, found.rewards, strict=True)
        ]
        with self.prm.reloaded():
            ratios, updates = self._scored_and_learned(learners)
        rewards = normalized(process_rewards(ratios, prime.beta))
        advantages: list[tuple[float, ...]] = [()] * len(found.samples)
        for places in found.compared():
            own, paid = [rewards[i] for i in places], [found.rewards[i] for i in places]
            for i, tokens in zip(places, leave_one_out(own, paid, prime), strict=True):
                advantages[i] = to_the_end(tokens)
        return Assigned(
            whitened_by_part(found.samples, advantages, found.parts),
            found.chosen,
            metrics=health(ratios, found),
            updates={"prm": updates},
        )

    def _scored_and_learned(
        self, samples: Sequence[TrainSample]
    ) -> tuple[TokenNumbers, list[UpdateResult]]:
        """Compute log φ − log ref of every token; train φ before, after, or not at all."""
        rate, model = self.settings.prime.learning_rate, self.prm
        match self.settings.prime.update:
            case "none":
                return self._log_ratios(samples), []
            case "before":
                updates = model.update(samples, self.objective, rate)
                return self._log_ratios(samples), updates
            case "after":
                size = self.settings.policy.sequences_per_update
                ratios: list[tuple[float, ...]] = []
                updates = []
                for start in range(0, len(samples), size):
                    batch = samples[start : start + size]
                    ratios += self._log_ratios(batch)
                    updates += model.update(batch, self.objective, rate)
                return ratios, updates

    def _log_ratios(self, samples: Sequence[TrainSample]) -> TokenNumbers:
        def ratio(batch: PackedBatch) -> Sequence[torch.Tensor]:
            own = self.prm.network(batch, temperature=1.0).logp_T
            return (own - self._reference_logp(batch),)

        return [ratios for (ratios,) in self.prm.per_token(samples, ratio)]

    def _reference_logp(self, batch: PackedBatch) -> torch.Tensor:
        return self.policy.reference_logp(batch, temperature=1.0)


def refuse_other_outcomes(found: Outcomes, estimator: str) -> None:
    """Raise a UserError for rewards that no probability can be."""
    for reward in found.rewards:
        if not 0 <= reward <= 1:
            raise UserError(
                f'reward.advantages = "prime": reward.estimator = {estimator!r} paid {reward:g}, '
                "expected 0 to 1, which the reward model learns to predict: use "
                '"majority", "soft" or another one of that range'
            )


def process_rewards(ratios: TokenNumbers, beta: float) -> list[tuple[float, ...]]:
    """Compute β q_t of every token but the last, which earns 0."""
    return [(*(beta * q for q in tokens[:-1]), 0.0) for tokens in ratios]


def to_the_end(tokens: Sequence[float]) -> tuple[float, ...]:
    """Compute at each token the sum from it to the last one."""
    return tuple(accumulate(reversed(tokens)))[::-1]


def normalized(rewards: TokenNumbers) -> list[tuple[float, ...]]:
    """Divide by the largest |sum to the end| of all tokens of all samples, plus 1e-6."""
    largest = max(abs(total) for tokens in rewards for total in to_the_end(tokens))
    return [tuple(r / (largest + 1e-6) for r in tokens) for tokens in rewards]


def leave_one_out(
    rewards: TokenNumbers, outcomes: Sequence[float], prime: PrimeSettings
) -> list[tuple[float, ...]]:
    """Compute what each token of a question's n samples earns beside the other samples.

    process:  c_p (r_t n − Σ_j mean_t r_j) / (n − 1)
    outcome:  c_o (o_i n − Σ_j o_j) / (n − 1), at the last token
    """
    n = len(outcomes)
    if n < 2:  # nothing to compare with
        return [(0.0,) * len(tokens) for tokens in rewards]
    typical = math.fsum(fmean(tokens) for tokens in rewards)
    total = math.fsum(outcomes)
    earned = []
    for tokens, outcome in zip(rewards, outcomes, strict=True):
        values = [prime.process_coef * (r * n - typical) / (n - 1) for r in tokens]
        values[-1] += prime.outcome_coef * (outcome * n - total) / (n - 1)
        earned.append(tuple(values))
    return earned


def health(ratios: TokenNumbers, found: Outcomes) -> dict[str, float]:
    """Say whether the reward model tells agreeing answers from others.

    ``prm/rank_accuracy``: pairs of answers to a question with different outcomes of which
    the better one has the larger Σ q, ties being half right; absent without such pairs.
    ``sign_accuracy``: samples where Σ q > 0 exactly if the outcome is more than 1/2.
    """
    sums = [math.fsum(tokens) for tokens in ratios]
    right = [(q > 0) == (o > 0.5) for q, o in zip(sums, found.rewards, strict=True)]
    metrics = {
        "prm/log_ratio_sum": fmean(sums),
        "prm/sign_accuracy": fmean(right),
    }
    pairs: list[float] = []
    for places in found.compared():
        scored = [(found.rewards[i], sums[i]) for i in places]
        pairs += [
            0.5 if q == other_q else float(q > other_q)
            for outcome, q in scored
            for other, other_q in scored
            if outcome > other
        ]
    if pairs:
        metrics["prm/rank_accuracy"] = fmean(pairs)
    return metrics
