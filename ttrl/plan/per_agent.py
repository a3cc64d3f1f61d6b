"""Counts what a policy per agent takes: bytes of the further policies, and pushes between them."""

from __future__ import annotations

from itertools import pairwise

from ttrl.plan.memory import Job
from ttrl.plan.second_model import LEAVES, states_beside
from ttrl.settings import Settings
from ttrl.settings.per_agent_rules import agent_count
from ttrl.types import UserError

PARTS = ("parameters", *LEAVES)
"""What a policy holds; `LEAVES` is away while another one is trained, with phase offload."""


def further(settings: Settings) -> int:
    """Count the policies besides the first.

    Raises:
        UserError: for a plan of one's own, which is not read here.
    """
    if settings.rollout.policies == "shared":
        return 0
    count = agent_count(settings.rollout)
    if count is None:
        raise UserError(
            f'rollout.policies = "per_agent" with rollout.workflow = {settings.rollout.workflow!r} '
            "cannot be planned: only its own code knows how many agents it has; plan a debate of "
            "as many agents"
        )
    return count - 1


def asked(settings: Settings) -> list[int]:
    """List the policies in the order in which a conversation asks them, see `Conversation`."""
    rollout = settings.rollout
    if not further(settings):
        return [0]
    agents = list(range(rollout.agents))
    if rollout.workflow == "debate":
        return [a for t in range(rollout.rounds) for a in (agents[::-1] if t % 2 else agents)]
    return [*agents, rollout.agents] if rollout.workflow == "mixture" else agents


def pushes(settings: Settings) -> int:
    """Count the pushes of weights within the rollout of a step, which begins at the first's."""
    return sum(one != other for one, other in pairwise([0, *asked(settings)]))


def states(job: Job) -> dict[str, int]:
    """Count the bytes of one further policy's weights, gradients and optimizer state."""
    return states_beside(job, job.adapters or job.shape.parameters)


def named(found: dict[str, int], count: int, *parts: str) -> dict[str, int]:
    """Return these parts of so many further policies, by the names of a plan's lines."""
    return {label(part): count * found[part] for part in parts if part in found}


def label(part: str) -> str:
    """Return what a plan calls a part of the further policies."""
    return f"agents' {part}"
