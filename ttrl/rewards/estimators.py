"""Reward estimators: what a group of unlabeled completions is worth.

An estimator is a class with `estimate`, registered under the name that ``reward.estimator`` takes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Protocol, TypeVar

from ttrl.answers import extract_answer
from ttrl.rewards.vote import majority_vote
from ttrl.types import CompletionGroup, Estimate, UserError


class RewardEstimator(Protocol):
    """Turns a group of completions into rewards, without a reference answer."""

    def estimate(self, group: CompletionGroup) -> Estimate:
        """One entry per completion, in the group's order, in every ``_G`` field."""
        ...


_REGISTERED: dict[str, type[RewardEstimator]] = {}
_Estimator = TypeVar("_Estimator", bound=type[RewardEstimator])


def register(name: str) -> Callable[[_Estimator], _Estimator]:
    """Class decorator: makes an estimator known under ``name``, which must be free."""

    def add(estimator: _Estimator) -> _Estimator:
        if name in _REGISTERED:
            raise ValueError(f"two reward estimators are named {name!r}: rename one")
        _REGISTERED[name] = estimator
        return estimator

    return add


def make_estimator(name: str) -> RewardEstimator:
    """The estimator that is registered under a name.

    Raises:
        UserError: if there is none.
    """
    if name not in _REGISTERED:
        near = difflib.get_close_matches(name, _REGISTERED, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"reward.estimator = {name!r} is unknown{hint}: expected one of "
            f"{', '.join(sorted(_REGISTERED))}"
        )
    return _REGISTERED[name]()


@register("majority")
class MajorityEstimator:
    """TTRL (arXiv 2504.16084): 1 for agreeing with the majority, else 0.

    The winning class of the vote is what is paid, so vote and reward cannot disagree about which
    answers are the same. An abstention earns nothing, even where everybody abstains.
    """

    def estimate(self, group: CompletionGroup) -> Estimate:
        vote = majority_vote([extract_answer(c.text) for c in group.completions])
        return Estimate(
            vote=vote,
            rewards_G=tuple(1.0 if cluster == 0 else 0.0 for cluster in vote.clusters_G),
            label=vote.majority,
            confidence=vote.share,
        )
