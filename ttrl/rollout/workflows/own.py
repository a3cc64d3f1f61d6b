"""A user's own workflow: code that we did not write, and what it returns trains the policy."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.rollout.workflows.base import Ask, OnGroup, Workflow
from ttrl.rollout.workflows.conversation import Conversation
from ttrl.settings import Settings
from ttrl.settings.plugins import errors_as_user_error, load_plugin
from ttrl.types import CompletionGroup, Question, UserError


class OwnWorkflow:
    """Runs the class that FILE.py:CLASS names; what it raises is a UserError that says where."""

    def __init__(self, name: str, settings: Settings) -> None:
        """Make the user's object with the run's settings.

        Raises:
            UserError: if its class is not there or raises, or makes what is no workflow.
        """
        self.name = name
        made = load_plugin(name, "rollout.workflow")
        with errors_as_user_error(name, "rollout.workflow"):
            self.workflow: Workflow = made(settings)
        if not callable(getattr(self.workflow, "run", None)):
            raise UserError(f"rollout.workflow = {name!r} makes an object that has no method run")
        if isinstance(self.workflow, Conversation) and not hasattr(self.workflow, "plan"):
            raise UserError(
                f"rollout.workflow = {name!r} is a Conversation without a plan: its __init__ has "
                "to call super().__init__(settings)"
            )

    def run(
        self, ask: Ask, questions: Sequence[Question], step: int, on_group: OnGroup
    ) -> list[CompletionGroup]:
        """Return what the user's workflow makes; see `Workflow.run`."""
        with errors_as_user_error(self.name, "rollout.workflow"):
            return self.workflow.run(ask, questions, step, on_group)
