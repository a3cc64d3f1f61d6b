"""Models that say how good an answer is, step by step or as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ttrl.reward_models.base import Reduction, RewardModel, reduce
from ttrl.settings.plugins import is_plugin
from ttrl.types import UserError

if TYPE_CHECKING:
    from ttrl.settings import Settings

__all__ = ["Reduction", "RewardModel", "check_reward_model", "make_reward_model", "reduce"]


def check_reward_model(name: str) -> None:
    """Raise a UserError for a name that no reward model can have; nothing is loaded."""
    if not is_plugin(name):
        raise UserError(f"reward model {name!r} is unknown: expected FILE.py:FUNCTION")


def make_reward_model(name: str, settings: Settings) -> RewardModel:
    """Load the reward model FILE.py:FUNCTION.

    Raises:
        UserError: for an unknown name.
    """
    check_reward_model(name)
    from ttrl.reward_models.own import OwnFunction

    return OwnFunction(name)
