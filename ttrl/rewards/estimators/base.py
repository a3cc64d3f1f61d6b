"""What a reward estimator is, and how settings name one.

A shipped one subclasses `Estimator`: its fields are its options, checked like all other settings.
A user's own can be any class with `estimate`; its options are its constructor's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import pydantic

from ttrl.settings import Section, Settings
from ttrl.settings.errors import did_you_mean, readable_errors
from ttrl.settings.plugins import is_plugin, load_plugin
from ttrl.types import Estimate, UserError, VotedGroup

LARGEST = 1e15
"""The largest of an estimator's numbers. Further ones would be finite here, and not when averaged,
turned into advantages, or multiplied with each other in float32: after the update, when it is too
late."""


class RewardEstimator(Protocol):
    """Turns a group that has voted into rewards; called by several threads at once."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Estimate what each completion is worth: one entry per completion in every ``_G`` field.

        Entries are in the group's order. A function of the group alone: the same one gives the same
        estimate, in whatever order groups come.
        """
        ...


class Estimator(Section):
    """Base of the shipped estimators: a frozen record of options."""

    uses_label: ClassVar[bool] = True
    """Whether it pays agreement with `VotedGroup.label`, so that labels may come from elsewhere."""

    own_advantages: ClassVar[bool] = False
    """Whether it returns advantages itself, so that there is no reward to compare or add to."""

    many_labels: ClassVar[bool] = False
    """Whether answers to a question have labels of their own, by which others they stand with."""

    uses_logprobs: ClassVar[bool] = False
    """Whether it reads log-probs of sampled tokens, which other trainers do not hand on."""

    @property
    def top_logprobs(self) -> int:
        """How many of the likeliest tokens of each place it reads (`Completion.top_logprobs`)."""
        return 0

    def read_settings(self, settings: Settings) -> None:
        """Take note of the run's settings, once, before the first estimate; nothing is loaded."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute an estimate as `RewardEstimator` demands."""
        raise NotImplementedError


_REGISTERED: dict[str, type[RewardEstimator]] = {}
_Class = TypeVar("_Class", bound=type[RewardEstimator])


def register(name: str) -> Callable[[_Class], _Class]:
    """Make the decorated estimator known under ``name``.

    Raises:
        ValueError: if another one has that name.
    """

    def add(estimator: _Class) -> _Class:
        if name in _REGISTERED:
            raise ValueError(f"two reward estimators are named {name!r}: rename one")
        _REGISTERED[name] = estimator
        return estimator

    return add


def estimator_names() -> list[str]:
    """List all registered names."""
    return sorted(_REGISTERED)


def make_estimator(name: str, options: Mapping[str, Any] | None = None) -> RewardEstimator:
    """Make the estimator that is registered under a name, or FILE.py:CLASS, with its options.

    Raises:
        UserError: for an unknown name, or options that it does not take.
    """
    if is_plugin(name):
        estimator: type[RewardEstimator] = load_plugin(name, "reward.estimator")
    elif name in _REGISTERED:
        estimator = _REGISTERED[name]
    else:
        raise UserError(
            f"reward.estimator = {name!r} is unknown{did_you_mean(name, _REGISTERED)}: expected "
            f"FILE.py:CLASS or one of {', '.join(estimator_names())}"
        )
    try:
        made = estimator(**(options or {}))
    except pydantic.ValidationError as error:
        raise UserError(
            f"options of reward.estimator = {name!r}: {readable_errors(error)}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a user's class raises what it likes
        raise UserError(f"options of reward.estimator = {name!r}: {error}") from error
    if not callable(getattr(made, "estimate", None)):
        raise UserError(f"reward.estimator = {name!r}: expected a class with a method estimate")
    return made
