"""What a run does with questions that arrive, beside training on them: answers, figures, resets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ttrl.evaluation.prequential import Prequential
from ttrl.learner.trained_model import TrainedModel
from ttrl.report.display import Display
from ttrl.rewards.labels import Teacher
from ttrl.rewards.scorer import GroupScorer
from ttrl.rollout.pool import RolloutPool
from ttrl.stream.adaptation import Adaptation
from ttrl.stream.source import StreamSource
from ttrl.types import CompletionGroup, Estimate, Question, StepResult


@dataclass(frozen=True, slots=True)
class StreamPhase:
    """Waits for a step's questions, and answers them with its votes; all ranks do so together."""

    source: StreamSource
    model: TrainedModel
    pool: RolloutPool
    scorer: GroupScorer
    display: Display
    adaptation: Adaptation | None
    """What answers questions again and forgets them, with ``stream.reset = "per_question"``."""
    prequential: Prequential = field(default_factory=Prequential)
    """What is known of all answers; a checkpoint holds it."""
    teacher: Teacher | None = None
    """Who has elected labels, if somebody else has."""

    def goes_on(self, step: int) -> bool:
        """Wait for the questions of a step; return False where the stream has ended."""
        return self.source.wait_for(step, self.display)

    def answer(
        self,
        step: int,
        groups: Sequence[CompletionGroup],
        estimates: Sequence[Estimate],
        updates: int | None = None,
    ) -> dict[str, float]:
        """Let the votes of a step answer questions that are new, before they are learned from.

        Args:
            step: the training step.
            groups: the answers to its questions, or to those that have come last.
            estimates: what they are worth.
            updates: the optimizer steps that the engine's weights have made; None: all that the
                model has.

        Returns:
            Figures of the answers; none at a further visit.
        """
        if not self.source.is_first_visit(step):
            return {}
        votes = [estimate.vote for estimate in estimates]
        if updates is None:
            updates = self.model.steps_taken
        self.source.answer(step, updates, groups, votes)
        return self.prequential.score(groups, votes, self.source.key, self.scorer.grader)

    def after_push(self, result: StepResult, *, is_end: bool) -> bool:
        """Count what a step has cost; at a last visit adapted weights answer, and are forgotten.

        They are forgotten, too, where the run ends among the visits: what it leaves is the model
        that every question is answered by. The engine has the weights from after the step.

        Args:
            result: of the step.
            is_end: whether the run is stopped after this step.

        Returns:
            Whether the policy went back, so that the engine needs its weights again.
        """
        step, metrics, begun = result.step, result.metrics, time.perf_counter()
        tokens, questions = metrics["rollout/tokens"], [g.question for g in result.groups]
        is_last, adaptation = self.source.is_last_visit(step), self.adaptation
        if is_last and adaptation is not None:
            groups, votes = adaptation.answer(questions, step, self.pool, self.scorer, self.display)
            tokens += sum(len(c.token_ids) for group in groups for c in group.completions)
            self.source.answer(step, self.model.steps_taken, groups, votes, adapted=True)
            key, grader = self.source.key, self.scorer.grader
            metrics |= self.prequential.score(groups, votes, key, grader, adapted=True)
        goes_back = adaptation is not None and (is_last or is_end)
        if adaptation is not None and goes_back:
            adaptation.reset()
        if is_last:
            self.forget(questions)
        seconds = metrics["time/rollout_s"] + metrics["time/update_s"]
        seconds += time.perf_counter() - begun
        tokens += metrics.get("free_pass/tokens", 0.0)
        metrics |= self.prequential.spend(tokens, seconds)
        metrics.setdefault("time/waited_s", self.source.waited_s)
        return goes_back

    def forget(self, questions: Sequence[Question]) -> None:
        """Drop what is held of questions that are not asked again.

        Memory, and a checkpoint, would else grow with the stream.
        """
        keepers = (self.source, self.scorer, self.pool, self.teacher)
        for keeper in keepers:
            if keeper is not None:
                keeper.forget(questions)

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` says of the stream."""
        return self.prequential.summary() | {"ended": self.source.has_ended}
