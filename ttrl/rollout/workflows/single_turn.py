"""The usual workflow: each question is asked once, many times over."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.rollout.sampling import voting
from ttrl.rollout.workflows.base import Ask, OnGroup
from ttrl.settings import Settings
from ttrl.types import CompletionGroup, Question


class SingleTurn:
    """Samples ``rollout.votes`` answers to each question: TTRL (arXiv 2504.16084)."""

    def __init__(self, settings: Settings) -> None:
        """Sample as the settings say."""
        self.settings = settings

    def run(
        self, ask: Ask, questions: Sequence[Question], step: int, on_group: OnGroup
    ) -> list[CompletionGroup]:
        """Return one group per question; see `Workflow.run`."""
        return ask(questions, voting(self.settings, "rollout", step), on_group)
