"""Rewards that know nothing: what a gain must be measured against."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.system.rng import generator
from ttrl.types import Estimate, VotedGroup


@register("random")
class Random(Estimator):
    """Spurious Rewards (arXiv 2506.10947): a coin per completion, whatever it says.

    Abstentions are paid like all others, even where everybody abstains: a coin that looked at them
    would reward the format of answers. The label is reported for the metrics alone.
    """

    uses_label: ClassVar[bool] = False

    p: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of the reward 1."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Draw r_i ~ Bernoulli(p) from the group's stream."""
        draws = generator(*voted.stream).random(len(voted.vote.answers_G))
        return Estimate(
            vote=voted.vote,
            rewards_G=tuple((draws < self.p).astype(float).tolist()),
            label=voted.label,
        )
