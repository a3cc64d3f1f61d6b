"""Every answer is paid for its own support: no label is singled out.

Neither estimator looks at the group's label, so ``reward.labels`` changes nothing here.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

import pydantic
from pydantic import Field

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.rewards.estimators.readings import class_means, spelling, surprisal
from ttrl.rewards.vote import answer_entropy
from ttrl.types import Estimate, VotedGroup


@register("soft")
class Soft(Estimator):
    """EMPO (arXiv 2504.05812): each answer earns its share of all votes.

    Questions whose vote is too certain or too scattered are left out, by the entropy of the
    answers in nats, H = -Σ_c s_c ln s_c. Abstentions are no part of H (s_c is a share of the
    voters), but count in the shares that are paid. The label that is reported is the majority.
    """

    uses_label: ClassVar[bool] = False

    min_entropy: Annotated[float, Field(ge=0)] = 0.0
    """Questions below it have weight 0."""
    max_entropy: Annotated[float, Field(ge=0)] | None = None
    """Questions above it have weight 0; None: there is no such limit."""

    @pydantic.model_validator(mode="after")
    def _band(self) -> Self:
        if self.max_entropy is not None and self.max_entropy < self.min_entropy:
            raise ValueError(
                f"max_entropy = {self.max_entropy} is less than min_entropy = {self.min_entropy}"
            )
        return self

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = n_{c_i} / G; weight 1[min_entropy <= H <= max_entropy]."""
        vote = voted.vote
        votes = vote.votes
        highest = math.inf if self.max_entropy is None else self.max_entropy
        inside = self.min_entropy <= answer_entropy(vote) <= highest
        return Estimate(
            vote=vote,
            rewards_G=tuple(0.0 if c is None else vote.counts[c] / votes for c in vote.clusters_G),
            label=vote.majority,
            weight=float(inside),
            confidence=vote.majority_ratio,
            metrics={"in_band": float(inside)},
        )


@register("confidence")
class Confidence(Estimator):
    """DARE (arXiv 2601.21804), simplified: shares weighted by certainty, and a bonus for rarity.

    Of n votes for an answer with mean uncertainty u, among M votes that are left after pruning:

        p ∝ n / (u + epsilon);  answers with p < tau are pruned, and p is normalised again
        r = p + alpha (1 - n / M) (1 - u)

    Abstentions and pruned answers earn 0. The paper's u is the mean token entropy; ours is
    1 - exp(-surprisal), one minus the geometric mean of the sampled tokens' probabilities, which
    lies in [0, 1). p is a distribution over answers, and the defaults are ours. The label that is
    reported is the answer with the largest p.
    """

    uses_label: ClassVar[bool] = False
    uses_logprobs: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Size of the bonus."""
    tau: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Answers that are less probable than this earn nothing."""
    epsilon: Annotated[float, Field(gt=0)] = 0.01
    """Bounds how much certainty can count."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r as in the class."""
        vote = voted.vote
        unsure = [1 - math.exp(-surprisal(c)) for c in voted.group.completions]
        u = class_means(vote, unsure)
        p = _normalised([n / (u + self.epsilon) for n, u in zip(vote.counts, u, strict=True)])
        p = _normalised([0.0 if share < self.tau else share for share in p])
        left = sum(n for n, share in zip(vote.counts, p, strict=True) if share)
        reward = [
            share + self.alpha * (1 - n / left) * (1 - u) if share else 0.0
            for n, u, share in zip(vote.counts, u, p, strict=True)
        ]
        best = max(range(len(p)), key=p.__getitem__, default=None)  # of equals, the vote's first
        return Estimate(
            vote=vote,
            rewards_G=tuple(0.0 if c is None else reward[c] for c in vote.clusters_G),
            label=None if best is None or not p[best] else spelling(vote, best),
            confidence=max(p, default=0.0),
            metrics={
                "uncertainty": math.fsum(unsure) / len(unsure),
                "pruned_share": (sum(vote.counts) - left) / vote.votes,
            },
        )


def _normalised(weights: list[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights] if total else weights
