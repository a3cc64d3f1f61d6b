"""Distrust by a question's own history: labels that keep changing, and some that never do."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from ttrl.credit.advantages import group_advantages
from ttrl.rewards.estimators.base import Estimator, register
from ttrl.system.rng import generator
from ttrl.types import Estimate, VotedGroup

Share = Annotated[float, Field(ge=0, le=1)]

WINDOW = 5
"""Visits that count as recent, and that a question must have had before it is judged by them."""
CALM = 3
"""Visits without a change after which minorities get no bonus any more."""
LOWEST = 0.1
"""The least weight of a question."""


class Visit(NamedTuple):
    """A visit to a question, as far as its history matters."""

    changed: bool
    majority_ratio: float


@register("ttrl_guard")
class TtrlGuard(Estimator):
    """TTRL-Guard (arXiv 2605.19444): trust a question's label by how it behaved so far.

    With the flip rate F, the share of visits after the first in which the label changed, and s, the
    mean majority ratio of the last five visits, the present one included:

    1. The question weighs w = 1 - F/2; times 0.7 if the present majority ratio is above ``share``
       and F above 0.3; times 0.85 at up to five visits of a question that has never changed, has
       had five, and has s above ``share``: the model may be sure of a wrong answer. Not below 0.1.
    2. A question that has changed, has had five visits, and has s above ``share`` is left out with
       probability ``skip``.
    3. From a change until three visits without one, answers that are not the label's and have a
       quarter of the votes get an advantage of beta * (their share) * mean |A| more, with
       beta = 0.3 * min(F / 0.3, 1), so that minorities survive.

    The paper multiplies rewards by w, which a division by the group's standard deviation undoes:
    here it weighs the question in the loss. It leaves out at most a quarter of a batch; a question
    does not know the others here. Advantages are GRPO's, with the bonus of 3.
    """

    own_advantages: ClassVar[bool] = True

    share: Share = 0.6
    """Majority ratio above which a label counts as confident."""
    skip: Share = 0.7
    """Probability of leaving out a question whose confident label has changed before."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[answer_i ≡ label], and what the class says of the question."""
        vote, agrees_G = voted.vote, voted.agrees_G
        visits = [Visit(past.changed, past.majority_ratio) for past in voted.history]
        visits.append(Visit(voted.changed, vote.majority_ratio))
        flips = flip_rate(visits)
        rewards_G = tuple(float(agrees) for agrees in agrees_G)
        advantages_G = group_advantages(rewards_G, "mean_std")
        bonus = 0.3 * min(flips / 0.3, 1.0) if is_unsettled(visits) else 0.0
        usual, votes = fmean(map(abs, advantages_G)), len(agrees_G)
        support_G = [0 if c is None else vote.counts[c] for c in vote.clusters_G]
        minority_G = [
            not agrees and support >= votes / 4
            for agrees, support in zip(agrees_G, support_G, strict=True)
        ]
        left_out = self._doubtful(visits) and bool(generator(*voted.stream).random() < self.skip)
        return Estimate(
            vote=vote,
            rewards_G=rewards_G,
            label=voted.label,
            advantages_G=tuple(
                a + bonus * support / votes * usual * minority
                for a, support, minority in zip(advantages_G, support_G, minority_G, strict=True)
            ),
            keep_G=(not left_out,) * votes,
            weight=self._weight(visits, flips),
            confidence=vote.majority_ratio,
            metrics={"flips": flips, "left_out": float(left_out)},
        )

    def _weight(self, visits: Sequence[Visit], flips: float) -> float:
        weight = 1 - flips / 2
        if visits[-1].majority_ratio > self.share and flips > 0.3:
            weight *= 0.7
        sure = [n for n in range(1, len(visits) + 1) if self._sure(visits[:n])]
        if sure[-1:] == [len(visits)] and len(sure) <= WINDOW:
            weight *= 0.85
        return max(weight, LOWEST)

    def _sure(self, visits: Sequence[Visit]) -> bool:
        """Say whether a question has never changed, and for long been answered alike."""
        return self._confident(visits) and not any(v.changed for v in visits)

    def _doubtful(self, visits: Sequence[Visit]) -> bool:
        """Say whether a question that is answered alike by now has changed before."""
        return self._confident(visits) and any(v.changed for v in visits)

    def _confident(self, visits: Sequence[Visit]) -> bool:
        recent = [v.majority_ratio for v in visits[-WINDOW:]]
        return len(visits) >= WINDOW and fmean(recent) > self.share


def flip_rate(visits: Sequence[Visit]) -> float:
    """Compute the share of visits after the first in which the label changed; 0 without any."""
    return fmean(v.changed for v in visits[1:]) if len(visits) > 1 else 0.0


def is_unsettled(visits: Sequence[Visit]) -> bool:
    """Say whether the label has changed in the last visits, of which `CALM` make it calm again."""
    return any(v.changed for v in visits[-CALM:])
