"""Where an answer stands among those of several agents, and what a verifier says of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ttrl.types import Question


@dataclass(frozen=True, slots=True)
class Turn:
    """Where an answer stands among those of several agents, and what it answers.

    Example: in the fourth debate about q1, what the first of the debaters says in the second round
    is at ``Turn(1, agent=0, trajectory=3, role="debater", asked=Question("q1/1/0/3", ...))``.
    """

    index: int
    """The turn, from 0."""
    agent: int
    """Which of those who act in this turn, from 0."""
    trajectory: int
    """Which of the question's conversations, from 0."""
    role: str
    """What the agent is there for; only answers of the same turn, role and policy are compared."""
    asked: Question | None = None
    """The prompt that was read; None: that of the group's question."""
    cut: int = 0
    """Tokens of earlier answers for which the prompt had no room."""
    policy: int | None = None
    """Which of the run's policies wrote it, from 0, where each agent has its own
    (``rollout.policies``); None: there is one for all."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of a solution.

    Example: ``Verdict(of=0, right=True)``: the group's first completion is right.
    """

    of: int
    """Index of the completion that it is about."""
    right: bool | None
    """What it says of that; None: nothing in the form that was asked for."""
