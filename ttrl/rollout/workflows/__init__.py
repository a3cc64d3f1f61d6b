"""How questions become groups of answers, one file per way; registered here by name."""

from __future__ import annotations

from collections.abc import Callable

from ttrl.rollout.workflows.acts import Act, Plan
from ttrl.rollout.workflows.base import Ask, OnGroup, Workflow
from ttrl.rollout.workflows.chain import Chain
from ttrl.rollout.workflows.conversation import Conversation
from ttrl.rollout.workflows.debate import Debate
from ttrl.rollout.workflows.mixture import Mixture
from ttrl.rollout.workflows.own import OwnWorkflow
from ttrl.rollout.workflows.single_turn import SingleTurn
from ttrl.settings import Settings
from ttrl.settings.errors import did_you_mean
from ttrl.settings.plugins import is_plugin
from ttrl.types import UserError

__all__ = [
    "WORKFLOWS",
    "Act",
    "Ask",
    "Conversation",
    "OnGroup",
    "Plan",
    "SingleTurn",
    "Workflow",
    "conversation_of",
    "make_workflow",
]

WORKFLOWS: dict[str, Callable[[Settings], Workflow]] = {
    "single_turn": SingleTurn,
    "debate": Debate,
    "mixture": Mixture,
    "chain": Chain,
}
"""Workflows by their name in ``rollout.workflow``."""


def make_workflow(settings: Settings) -> Workflow:
    """Make the workflow that ``rollout.workflow`` names.

    Raises:
        UserError: if there is none of that name, or a user's own cannot be made.
    """
    name = settings.rollout.workflow
    if is_plugin(name):
        return OwnWorkflow(name, settings)
    if name not in WORKFLOWS:
        raise UserError(
            f"rollout.workflow = {name!r} is unknown{did_you_mean(name, WORKFLOWS)}: expected one "
            f"of {', '.join(WORKFLOWS)}, or FILE.py:CLASS for your own"
        )
    return WORKFLOWS[name](settings)


def conversation_of(workflow: Workflow) -> Conversation | None:
    """Return the conversation that a workflow is, a user's own too; None: it is none.

    One that has a ``run`` of its own may do anything, and is none.
    """
    made = workflow.workflow if isinstance(workflow, OwnWorkflow) else workflow
    is_one = isinstance(made, Conversation) and type(made).run is Conversation.run
    return made if is_one and isinstance(made, Conversation) else None
