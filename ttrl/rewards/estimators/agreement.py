"""Agreement with the label: the paper's own reward."""

from __future__ import annotations

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.types import Estimate, VotedGroup


@register("majority")
class Majority(Estimator):
    """TTRL (arXiv 2504.16084): 1 for agreeing with the label, else 0.

    The vote's own equivalence classes are what is paid, so vote and reward cannot disagree about
    which answers are the same. An abstention earns nothing, even where everybody abstains.
    """

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[answer_i ≡ label]."""
        return Estimate(
            vote=voted.vote,
            rewards_G=tuple(float(agrees) for agrees in voted.agrees_G),
            label=voted.label,
            confidence=voted.vote.majority_ratio,
        )
