"""Conversations of agents as a way to spend tokens: their outcomes vote, and reading costs, too."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from ttrl.data.free_prompts import FreePrompts
from ttrl.evaluation.metrics import maj_at_k
from ttrl.evaluation.outcomes import outcomes, read_tokens
from ttrl.models.pretrained import load_tokenizer
from ttrl.models.saved_policies import SavedPolicy, saved_policies
from ttrl.rollout.workflows import Conversation, conversation_of, make_workflow
from ttrl.rollout.workflows.checks import later_prompts
from ttrl.scaling.points import Point
from ttrl.settings import Settings
from ttrl.settings.agent_rules import calls
from ttrl.settings.per_agent_rules import agent_count
from ttrl.types import CompletionGroup, UserError

if TYPE_CHECKING:
    from ttrl.scaling.measuring import Measuring

SHAPES = {"debate": (2, 2), "mixture": (3, 1), "chain": (3, 1)}
"""Workflow -> its agents and rounds, where the settings have another workflow."""


def settings_of(settings: Settings, workflow: str) -> Settings:
    """Return the settings of conversations: with the number of agents and rounds, and templates.

    These are the settings' own, if ``rollout.workflow`` is this one.
    """
    rollout = settings.rollout
    agents, rounds = SHAPES[workflow]
    if rollout.workflow == workflow:
        agents, rounds = rollout.agents, rollout.rounds
    held = rollout.model_copy(update={"workflow": workflow, "agents": agents, "rounds": rounds})
    # How many votes a training step has is not asked here, but a conversation looks at it.
    held = held.model_copy(update={"votes": 2 * calls(held)})
    return settings.model_copy(update={"rollout": held})


def shape(settings: Settings) -> str:
    """Name the shape of a conversation, for example debate 2x2 or mixture 3+1."""
    rollout = settings.rollout
    match rollout.workflow:
        case "debate":
            return f"debate {rollout.agents}x{rollout.rounds}"
        case "mixture":
            return f"mixture {rollout.agents}+1"
        case name:
            return f"{name} {rollout.agents}x1"


def refuse_uneven(settings: Settings, workflow: str, counts: list[int]) -> None:
    """Raise a UserError if no number of answers is one of whole conversations."""
    held = settings_of(settings, workflow)
    each = calls(held.rollout)
    if all(n % each for n in counts):
        raise UserError(
            f"--n {', '.join(map(str, counts))}: a {shape(held)} has {each} answers in all turns, "
            f"and {workflow} needs a multiple of them; add --n {4 * each}"
        )


def policies_of(settings: Settings, workflows: Sequence[str]) -> tuple[SavedPolicy, ...]:
    """Find the policies that hold conversations, where each agent has its own; () where none has.

    Raises:
        UserError: if they are not beside the model, or are agents of another workflow.
    """
    rollout = settings.rollout
    if rollout.policies == "shared" or not workflows:
        return ()
    if others := [name for name in workflows if name != rollout.workflow]:
        raise UserError(
            f'--methods {",".join(workflows)}: rollout.policies = "per_agent" has a policy for '
            f"each agent of rollout.workflow = {rollout.workflow!r}, and {others[0]} has other "
            f"agents: leave it out, or add --set rollout.policies=shared, with which "
            f"{settings.model.path} speaks for all agents"
        )
    return saved_policies(settings.model, agent_count(rollout) or 1)


def in_turns(on: Measuring, workflow: str) -> Iterator[Point]:
    """Hold conversations; the outcomes of n answers' worth of them vote.

    n counts the answers of all turns. Exact expectations over which of the largest n's
    conversations are drawn. What an agent of a later turn reads is counted as read.
    """
    settings = settings_of(on.evaluation.settings, workflow)
    conversation = conversation_of(make_workflow(settings))
    assert conversation is not None
    conversation.begin(FreePrompts.of(settings, load_tokenizer(settings.model)))
    asked = on.asked
    for question in asked:
        conversation.check(question)
    numbers = [n for n in on.counts if n % conversation.calls == 0]
    begun = time.perf_counter()
    groups = _held(on, conversation, numbers[-1])
    took = time.perf_counter() - begun
    grader, extract = on.evaluation.grader, on.evaluation.extract
    ends, sampled, read = [], [], []
    for group in groups:
        completions = group.completions
        answers = [extract(c.text) for c in completions]
        ends.append(outcomes(answers, [c.turn for c in completions], grader))
        sampled.append(sum(len(c.token_ids) for c in completions))
        read.append(read_tokens(completions))
    references = [on.reference(group.question.id) for group in groups]
    for n in numbers:
        share = n / numbers[-1]
        drawn = n // conversation.calls
        yield Point(
            shape(settings),
            n,
            tuple(
                maj_at_k(found, reference, drawn, grader)
                for found, reference in zip(ends, references, strict=True)
            ),
            share * fmean(sampled),
            share * fmean(read),
            seconds=share * took / len(groups),
        )


def _held(on: Measuring, conversation: Conversation, answers: int) -> list[CompletionGroup]:
    """Hold conversations of so many answers to each question, as evaluation does."""
    params = on.evaluation.sampling(0)
    own = replace(params, n=answers, stream=(*params.stream, "turns"))
    with on.display.bar(conversation.name, len(on.asked)) as bar:
        groups = conversation.converse(on.pool.sample, on.asked, own, lambda group: bar.advance())
    on.pool.forget(later_prompts(groups))
    return groups
