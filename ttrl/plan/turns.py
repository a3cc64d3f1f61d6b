"""Counts what is sampled to a question, turn by turn, where agents answer in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from ttrl.plan.machine import Machine
from ttrl.rollout.workflows import Act, conversation_of, make_workflow
from ttrl.rollout.workflows.checks import agents_of
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


@dataclass(frozen=True)
class Turns:
    """What is sampled to a question, and by which policies.

    Example: ``Turns((Asked(64, 200.0, shared=True),))`` is 64 answers of one policy.
    """

    asked: tuple[Asked, ...]
    """One after the other."""
    speakers: tuple[int, ...] = (0,)
    """The policies, in the order in which they are asked: `Conversation.speakers`."""

    @property
    def further(self) -> int:
        """The number of policies besides the first."""
        return max(self.speakers)

    @property
    def pushes(self) -> int:
        """Pushes of weights within the rollout of a step, which begins at the first policy's."""
        return sum(one != other for one, other in pairwise([0, *self.speakers]))


def turns_of(settings: Settings, machine: Machine) -> Turns:
    """Make the workflow, and read from its plan what is sampled to a question.

    In later turns each prompt is the question and the mean answers that its agent sees, within
    ``data.max_prompt_tokens``; a template's own words are not counted. A workflow that is no plan
    of turns is counted like a single one.

    Raises:
        UserError: for a workflow that cannot be made, or has agents that nobody knows.
    """
    rollout, question = settings.rollout, machine.prompt_tokens
    held = conversation_of(make_workflow(settings))
    agents_of(held, settings)  # refuses what a run would refuse
    if held is None:
        return Turns((Asked(rollout.votes, question, shared=True),))
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
    return Turns(tuple(found), held.speakers)


def shown(act: Act, agent: int) -> int:
    """Count the answers that an agent is shown: its own, and as many others' as it may see."""
    own = sum(place[1] == agent for place in act.sees)
    others = len(act.sees) - own
    return own + (others if act.others is None else min(others, act.others))


def all_answers(asked: Sequence[Asked]) -> int:
    """Count the answers to a question."""
    return sum(part.answers for part in asked)
