"""Models that say how good an answer is, step by step or as a whole."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ttrl.reward_models.base import Reduction, RewardModel, reduce
from ttrl.settings.errors import did_you_mean
from ttrl.settings.plugins import is_plugin
from ttrl.types import UserError

if TYPE_CHECKING:
    from ttrl.reward_models.folder import Folder
    from ttrl.settings import Settings

READINGS = {
    "qwen-prm": "ttrl.reward_models.heads.QwenPrm",
    "skywork-prm": "ttrl.reward_models.heads.SkyworkPrm",
    "math-shepherd": "ttrl.reward_models.tokens.MathShepherd",
    "rlhflow": "ttrl.reward_models.tokens.RlhFlow",
    "orm": "ttrl.reward_models.heads.Outcome",
    "likelihood": "ttrl.reward_models.likelihood.Likelihood",
    "generative": "ttrl.reward_models.generative.Generative",
}
"""Kinds of reward models -> the class whose ``load`` reads one. KIND:PATH names a model."""

SHIPPED = {"tiny-prm": "ttrl.reward_models.likelihood.Likelihood"}
"""Names of models that come with ttrl -> the class that reads them."""

EXPECTED = (
    f"{', '.join(SHIPPED)}, FILE.py:FUNCTION, or KIND:PATH with a kind of {', '.join(READINGS)}"
)

__all__ = [
    "READINGS",
    "SHIPPED",
    "Reduction",
    "RewardModel",
    "check_reward_model",
    "make_reward_model",
    "reduce",
]


def check_reward_model(name: str) -> None:
    """Raise a UserError for a name that no reward model can have; nothing is loaded."""
    kind, _, path = name.partition(":")
    if name in SHIPPED or (kind in READINGS and path) or is_plugin(name):
        return
    if kind in READINGS:
        raise UserError(
            f"reward model {name!r} does not say where it is: expected {kind}:PATH, a folder or a "
            "hub name"
        )
    if kind in SHIPPED:
        raise UserError(f"reward model {name!r} comes with ttrl: expected {kind!r} alone")
    if name.endswith(".py"):
        raise UserError(f"reward model {name!r} names no function: expected {name}:FUNCTION")
    hint = did_you_mean(kind, [*READINGS, *SHIPPED])
    raise UserError(f"reward model {name!r} is unknown{hint}: expected {EXPECTED}")


def make_reward_model(name: str, settings: Settings) -> RewardModel:
    """Load the reward model of a name, as ``[reward_model]`` says, in ``model.dtype``.

    Args:
        name: "tiny-prm"; FILE.py:FUNCTION for your own; or KIND:PATH, for example
            "qwen-prm:Qwen/Qwen2.5-Math-PRM-7B", with a folder or a hub name.
        settings: of which ``model.dtype`` and ``reward_model`` are read.

    Raises:
        UserError: for an unknown name, or a model that cannot be loaded without code of its own.
    """
    check_reward_model(name)
    kind, _, path = name.partition(":")
    if kind in READINGS or name in SHIPPED:
        from ttrl.reward_models.folder import Folder

        if name in SHIPPED:
            return _load(SHIPPED[name])(Folder.shipped(name, settings), settings)
        return _load(READINGS[kind])(Folder.of(path, settings, name), settings)
    from ttrl.reward_models.own import OwnFunction

    return OwnFunction(name, settings)


def _load(dotted: str) -> Callable[[Folder, Settings], RewardModel]:
    module, _, name = dotted.rpartition(".")
    load: Callable[[Folder, Settings], RewardModel] = getattr(import_module(module), name).load
    return load
