"""Rewards beside the estimator's own: ``reward.extra``. None of them needs a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from ttrl.rewards.estimators.base import LARGEST
from ttrl.settings import Settings
from ttrl.settings.errors import did_you_mean
from ttrl.settings.plugins import errors_as_user_error, is_plugin, load_plugin
from ttrl.types import CompletionGroup, UserError

RewardFunction = Callable[[CompletionGroup], Sequence[float]]
"""Function from a group to one number per completion; called by several threads."""


class ExtraRewards:
    """Computes what each completion of a group earns beside the estimator's reward."""

    def __init__(self, settings: Settings) -> None:
        """Read ``reward.extra`` and ``reward.overlong_buffer``.

        Raises:
            UserError: for a name that is neither ours nor FILE.py:FUNCTION, or two functions of
                one name, by which metrics call them.
        """
        self.functions: dict[str, RewardFunction] = {
            name: _function(name, settings) for name in settings.reward.extra
        }
        names = [shown(name) for name in self.functions]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"reward.extra names {sorted(twice)} twice: expected functions of different names, "
                "by which metrics can call them"
            )

    def of(self, group: CompletionGroup) -> dict[str, tuple[float, ...]]:
        """Return the rewards by what ``reward.extra`` calls them, one per completion.

        Raises:
            UserError: for what a user's function raises, or if it returns something else.
        """
        return {name: _checked(function, name, group) for name, function in self.functions.items()}


def shown(name: str) -> str:
    """Return the name that metrics give a reward: of FILE.py:FUNCTION, the function's."""
    return name.rpartition(":")[2]


def soft_overlong(group: CompletionGroup, longest: int, buffer: int) -> list[float]:
    """Compute DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).

    -max(0, len - (longest - buffer)) / buffer: 0 up to the buffer, then linear, to -1 for what was
    cut off.
    """
    free = longest - buffer
    return [-max(0, len(c.token_ids) - free) / buffer + 0.0 for c in group.completions]


def _function(name: str, settings: Settings) -> RewardFunction:
    if is_plugin(name):
        function: RewardFunction = load_plugin(name, "reward.extra")
        return function
    buffer = settings.reward.overlong_buffer
    if name == "soft_overlong" and buffer is not None:  # `ttrl.settings.rules` has seen to it
        return partial(soft_overlong, longest=settings.rollout.max_new_tokens, buffer=buffer)
    raise UserError(
        f"reward.extra names {name!r}{did_you_mean(name, ['soft_overlong'])}: expected "
        "soft_overlong, or FILE.py:FUNCTION for your own"
    )


def _checked(function: RewardFunction, name: str, group: CompletionGroup) -> tuple[float, ...]:
    with errors_as_user_error(name, "reward.extra"):
        returned = function(group)
    try:
        rewards_G = tuple(map(float, returned))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"reward.extra {name!r} returned {returned!r}: expected a number per completion"
        ) from error
    if len(rewards_G) != len(group.completions) or not all(
        math.isfinite(r) and abs(r) <= LARGEST for r in rewards_G
    ):
        raise UserError(
            f"reward.extra {name!r} returned {len(rewards_G)} numbers for "
            f"{len(group.completions)} completions, {list(rewards_G[:4])} ...: expected a finite "
            f"one for each, of at most {LARGEST:g}"
        )
    return rewards_G
