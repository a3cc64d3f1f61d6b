"""Checks of an estimate that a user's code may have made: one that cannot train is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ttrl.rewards.estimators.base import LARGEST
from ttrl.types import Estimate, UserError, Vote


def checked_estimate(returned: object, completions: int, name: str) -> Estimate:
    """Check what an estimator returned of a group.

    Args:
        returned: an `Estimate`, it is hoped.
        completions: how many the group has.
        name: what ``reward.estimator`` calls the estimator.

    Returns:
        The estimate, with plain tuples and numbers, where arrays are welcome too.

    Raises:
        UserError: for anything that cannot train the policy; it names the field.
    """
    if not isinstance(returned, Estimate):
        raise UserError(
            f"reward.estimator = {name!r} returned {returned!r}, of type "
            f"{type(returned).__name__}: expected a ttrl.types.Estimate"
        )
    estimate = _plain(returned, name)
    _refuse_other_types(estimate, name)
    _refuse_other_lengths(estimate, completions, name)
    _refuse_out_of_range(estimate, name)
    return estimate


def _plain(returned: Estimate, name: str) -> Estimate:
    try:
        return replace(
            returned,
            rewards_G=_tuple(returned.rewards_G, float),
            advantages_G=_tuple(returned.advantages_G, float),
            keep_G=_tuple(returned.keep_G, bool),
            labels_G=_tuple(returned.labels_G, lambda label: label),
            weight=float(returned.weight),
            confidence=float(returned.confidence),
            metrics={str(key): float(value) for key, value in returned.metrics.items()},
        )
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"reward.estimator = {name!r} returned an Estimate that holds something else than "
            f"numbers: {error}"
        ) from error


def _tuple(values: Iterable[Any] | None, kind: Callable[[Any], Any]) -> Any:
    return None if values is None else tuple(map(kind, values))


def _refuse_other_types(estimate: Estimate, name: str) -> None:
    if not isinstance(estimate.vote, Vote):
        raise UserError(
            f"reward.estimator = {name!r}: vote is of type {type(estimate.vote).__name__}, "
            "expected a ttrl.types.Vote, for example voted.vote"
        )
    for label in (estimate.label, *(estimate.labels_G or ())):
        if not isinstance(label, str | None):
            raise UserError(
                f"reward.estimator = {name!r}: label = {label!r}, expected a str or None"
            )
    if estimate.rewards_G is None:
        raise UserError(f"reward.estimator = {name!r}: rewards_G is None, expected numbers")


def _refuse_other_lengths(estimate: Estimate, completions: int, name: str) -> None:
    per_completion = {
        "rewards_G": estimate.rewards_G,
        "advantages_G": estimate.advantages_G,
        "keep_G": estimate.keep_G,
        "labels_G": estimate.labels_G,
        "vote.answers_G": estimate.vote.answers_G,
        "vote.clusters_G": estimate.vote.clusters_G,
    }
    for field, values in per_completion.items():
        if values is not None and len(values) != completions:
            raise UserError(
                f"reward.estimator = {name!r}: {field} has {len(values)} entries for "
                f"{completions} completions; expected one each"
            )


def _refuse_out_of_range(estimate: Estimate, name: str) -> None:
    figures = {
        "rewards_G": estimate.rewards_G,
        "advantages_G": estimate.advantages_G or (),
        "weight": (estimate.weight,),
        "confidence": (estimate.confidence,),
        **{f"metrics[{key!r}]": (value,) for key, value in estimate.metrics.items()},
    }
    for field, numbers in figures.items():
        for number in numbers:
            if not abs(number) <= LARGEST:
                raise UserError(
                    f"reward.estimator = {name!r}: {field} holds {number}, expected finite "
                    f"numbers of at most {LARGEST:g}"
                )
    if estimate.weight < 0:
        raise UserError(
            f"reward.estimator = {name!r}: weight = {estimate.weight}, expected a number >= 0"
        )
