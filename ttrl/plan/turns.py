"""Counts what is sampled to a question, turn by turn, where agents answer in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ttrl.plan.machine import Machine
from ttrl.rollout.workflows import Act, conversation_of, make_workflow
from ttrl.settings import Settings


@dataclass(frozen=True)
class Asked:
    """Answers that are sampled together, in a turn, to one of a step's questions.

    Example: ``Asked(32, 200.0, shared=True)`` is the first round of 16 debates of two.
    """

    answers: int
    """How many there are."""
    prompt: float
    """Tokens of the prompt of each, on average."""
    shared: bool
    """Whether all have the same prompt, which is then read once."""


def asked_of(settings: Settings, machine: Machine) -> tuple[Asked, ...]:
    """List what is sampled to a question, one after the other.

    In later turns each prompt is the question and the mean answers that its agent sees, within
    ``data.max_prompt_tokens``; a template's own words are not counted. A workflow that is no plan
    of turns is counted like a single one.

    Raises:
        UserError: for a workflow that cannot be made.
    """
    rollout, question = settings.rollout, machine.prompt_tokens
    held = conversation_of(make_workflow(settings))
    if held is None:
        return (Asked(rollout.votes, question, shared=True),)
    count = rollout.votes // held.calls
    answer = machine.answer_share * rollout.max_new_tokens
    found = []
    for t, acts in enumerate(held.plan):
        first = sum(t == 0 and act.template is None for act in acts)
        if first:
            found.append(Asked(first * count, question, shared=True))
        prompts = [
            min(question + shown(act, agent) * answer, settings.data.max_prompt_tokens)
            for agent, act in enumerate(acts)
            if t > 0 or act.template is not None
        ]
        if prompts:
            found.append(Asked(len(prompts) * count, fmean(prompts), shared=False))
    return tuple(found)


def shown(act: Act, agent: int) -> int:
    """Count the answers that an agent is shown: its own, and as many others' as it may see."""
    own = sum(place[1] == agent for place in act.sees)
    others = len(act.sees) - own
    return own + (others if act.others is None else min(others, act.others))


def all_answers(asked: Sequence[Asked]) -> int:
    """Count the answers to a question."""
    return sum(part.answers for part in asked)
