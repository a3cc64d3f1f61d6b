"""A step's answers: sampled, judged while others are still being sampled, and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from ttrl.data.sources import QuestionSource
from ttrl.learner.trained_model import TrainedModel
from ttrl.report.display import Display
from ttrl.rewards.labels import LabelSource
from ttrl.rewards.scorer import GroupScorer, in_background
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.resampling import Rollout, rounds_of
from ttrl.rollout.sampling import greedy, voting
from ttrl.rollout.workflows import Workflow
from ttrl.rollout.workflows.checks import (
    PoolAsk,
    estimate_of,
    refuse_other_groups,
    refuse_repeated,
)
from ttrl.run.run_folder import RunFolder
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, CompletionGroup, Question, WeightSource


@dataclass(frozen=True, slots=True)
class RolloutPhase:
    """Asks the questions of a step; all ranks do so together, perhaps beside an update."""

    settings: Settings
    source: QuestionSource
    workflow: Workflow
    pool: RolloutPool
    model: TrainedModel
    labels: LabelSource
    scorer: GroupScorer
    ranks: Ranks
    """As the thread that samples talks to them."""
    folder: RunFolder
    display: Display

    def run(self, step: int) -> Rollout:
        """Sample a step's groups, and further ones in place of those that teach nothing."""
        source, rollout = self.source, Rollout()
        own, further = source.questions(step), partial(source.further, step)
        for asked in rounds_of(own, further, rollout, self.settings.rollout.resample_rounds):
            self._ask(asked, step, rollout)
        return rollout

    def _ask(self, questions: Sequence[Question], step: int, rollout: Rollout) -> None:
        """Sample groups, judge them while others are still being sampled, and add them.

        Each rank judges the groups that it samples. Both are on disk when they are known: what
        fails in judging is raised when all groups have been sampled and kept.
        """
        settings, ranks = self.settings, self.ranks
        refuse_repeated([*questions, *(group.question for group in rollout.groups)], step)
        baseline = self._greedy(questions, step)
        labels = self.labels.labels_for(questions, step, self._elect)
        judge = partial(self.scorer.estimate, labels=labels, step=step)
        early = self.scorer.decided if settings.rollout.stop_when_decided else None
        title = f"step {step}: sampling{' further' if rollout.groups else ''}"
        with (
            self.display.bar(title, len(questions)) as bar,
            in_background(judge) as (submit, judged),
        ):

            def on_group(group: CompletionGroup) -> None:
                submit(replace(group, greedy=baseline.get(group.question.id)))
                over = [f for f in list(judged.values()) if f.done()]
                ratios = [f.result().vote.majority_ratio for f in over if f.exception() is None]
                bar.advance(f"majority ratio {fmean(ratios):.2f}" if ratios else "")

            ask = PoolAsk(self.pool, settings.rollout.temperature, early)
            groups = self.workflow.run(ask, questions, step, on_group)
            refuse_other_groups(groups, questions, settings.rollout.workflow)
            groups = [replace(group, greedy=baseline.get(group.question.id)) for group in groups]
            answers = [*rollout.groups, *groups]
            ranks.on_rank_zero(partial(self.folder.keep_answers, step, answers))
            found = ranks.gather_dict({id: future.result() for id, future in judged.items()})
        rollout.add(groups, [estimate_of(group, found) for group in groups])
        keep = partial(self.folder.keep_estimates, step, rollout.groups, rollout.estimates)
        ranks.on_rank_zero(keep)

    def _greedy(self, questions: Sequence[Question], step: int) -> dict[str, Completion]:
        """Sample the greedy answers, by question, if advantages need them."""
        if self.settings.reward.advantages != "remax":
            return {}
        groups = self.pool.sample(questions, greedy(self.settings, step))
        return {group.question.id: group.completions[0] for group in groups}

    def _elect(
        self, teacher: WeightSource, questions: Sequence[Question], step: int
    ) -> dict[str, str | None]:
        """Return a teacher's majorities; the pool is at the policy's weights again afterwards."""
        pool, scorer = self.pool, self.scorer
        pool.push_weights(teacher)
        with self.display.bar(f"step {step}: teacher", len(questions)) as bar:
            params = voting(self.settings, "teacher", step)
            groups = pool.sample(questions, params, lambda group: bar.advance())
        pool.push_weights(self.model)
        return {group.question.id: scorer.vote(group).majority for group in groups}
