"""Rules for a policy per agent: what knows of one policy alone does not go with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrl.settings.plugins import is_plugin
from ttrl.settings.reward import TOKEN_ADVANTAGES
from ttrl.settings.rollout import IN_TURNS, RolloutSettings

if TYPE_CHECKING:
    from ttrl.settings.settings import Settings

NAME = 'rollout.policies = "per_agent"'
ONE_POLICY = {
    "teacher": "follows the weights of one policy",
    "harmony": "asks one policy for text",
    "reflection": "asks one policy for text",
}
"""Label sources that know of one policy, and how."""


def agent_count(rollout: RolloutSettings) -> int | None:
    """Count the agents of a shipped workflow; None: only its plan knows."""
    agents = rollout.agents
    return {"debate": agents, "mixture": agents + 1, "chain": agents}.get(rollout.workflow)


def per_agent_rules(settings: Settings) -> Iterator[str]:
    """Yield a message for every rule of ``rollout.policies`` that is broken."""
    rollout, reward = settings.rollout, settings.reward
    if rollout.policies == "shared":
        return
    if rollout.workflow not in IN_TURNS and not is_plugin(rollout.workflow):
        choice = " or ".join(f'"{name}"' for name in IN_TURNS)
        yield (
            f"{NAME} needs rollout.workflow = {choice}, or a plan of your own (FILE.py:CLASS); it "
            f"is {rollout.workflow!r}, whose answers are all of one agent"
        )
    if rollout.overlap:
        yield (
            f"rollout.overlap = true samples while the policies are updated, and with {NAME} the "
            "engine takes their weights, turn by turn, meanwhile: unset one of them"
        )
    if reward.advantages in TOKEN_ADVANTAGES:
        model = {"gae": "critic", "prime": "reward model"}[reward.advantages]
        yield (
            f'reward.advantages = "{reward.advantages}" trains one {model} beside one policy: with '
            f'{NAME} choose another, for example "mean_std"'
        )
    if why := ONE_POLICY.get(reward.labels):
        yield f'reward.labels = "{reward.labels}" {why}: with {NAME} set "votes"'
    if settings.data.source != "list":
        yield (
            f'{NAME} needs data.source = "list", got "{settings.data.source}": what arrives is '
            "answered, and what is posed is written, by one policy"
        )
