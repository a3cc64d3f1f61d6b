"""A step's answers: sampled, judged while others are still being sampled, and on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TypeVar

from ttrl.data.free_prompts import FreePrompts
from ttrl.data.sources import QuestionSource
from ttrl.learner.trained_model import TrainedModel
from ttrl.posed.phase import PosedPhase
from ttrl.report.display import Display
from ttrl.rewards.free_pass import AfterVoting
from ttrl.rewards.labels import LabelSource
from ttrl.rewards.scorer import GroupScorer, in_background
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.resampling import Rollout, rounds_of
from ttrl.rollout.sampling import greedy, voting
from ttrl.rollout.workflows import Workflow
from ttrl.rollout.workflows.checks import (
    PoolAsk,
    estimate_of,
    later_prompts,
    refuse_other_groups,
    refuse_repeated,
)
from ttrl.run.free_pass import FreePass
from ttrl.run.run_folder import RunFolder
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, CompletionGroup, Estimate, Question, Vote, WeightSource

Judged = TypeVar("Judged")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked in a round."""

    questions: Sequence[Question]
    step: int
    earlier: Sequence[CompletionGroup]
    """The groups of earlier rounds of the step."""
    greedy: Mapping[str, Completion]
    """The greedy answers, by question, if advantages need them."""

    def with_greedy(self, group: CompletionGroup) -> CompletionGroup:
        return replace(group, greedy=self.greedy.get(group.question.id))


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
    free_prompts: FreePrompts | None = None
    """For a label source that asks the policy for text."""
    posed: PosedPhase | None = None
    """Where the policy poses the questions."""

    def run(self, step: int) -> Rollout:
        """Sample a step's groups, and further ones in place of those that teach nothing."""
        source, rollout = self.source, Rollout()
        if self.posed is not None:
            with self.display.bar(f"step {step}: posing", 1):
                self.posed.pose(step)
            self._keep_proposals(self.posed, step)
        own, further = source.questions(step), partial(source.further, step)
        for asked in rounds_of(own, further, rollout, self.settings.rollout.resample_rounds):
            self.ask(asked, step, rollout, further=asked is not own)
        if self.posed is not None:
            self.posed.judge(step, rollout)
            self._keep_proposals(self.posed, step)
        return rollout

    def ask(
        self, questions: Sequence[Question], step: int, rollout: Rollout, *, further: bool = False
    ) -> None:
        """Sample groups, judge them while others are still being sampled, and add them.

        Each rank judges the groups that it samples; where labels depend on the votes, it counts
        these meanwhile. All is on disk when it is known: what fails in judging is raised when all
        groups have been sampled and kept.
        """
        refuse_repeated([*questions, *(group.question for group in rollout.groups)], step)
        asked = _Asked(questions, step, rollout.groups, self._greedy(questions, step))
        labels, source = self.labels.labels_for(questions, step, self._elect), self.labels
        if isinstance(source, AfterVoting):
            groups, votes = self._sample(asked, self.scorer.vote, lambda vote: vote)
            groups, own = self._label(source, asked, groups, votes, rollout)
        else:
            judge = partial(self.scorer.estimate, labels=labels, step=step)
            groups, own = self._sample(asked, judge, lambda estimate: estimate.vote)
        found = self.ranks.gather_dict(own)
        rollout.add(groups, [estimate_of(group, found) for group in groups], further=further)
        keep = partial(self.folder.keep_estimates, step, rollout.groups, rollout.estimates)
        self.ranks.on_rank_zero(keep)

    def _sample(
        self,
        asked: _Asked,
        judge: Callable[[CompletionGroup], Judged],
        vote_of: Callable[[Judged], Vote],
    ) -> tuple[list[CompletionGroup], dict[str, Judged]]:
        """Return the groups, and what was judged of those that this rank has sampled, by id."""
        settings, questions, step = self.settings, asked.questions, asked.step
        early = self.scorer.decided if settings.rollout.stop_when_decided else None
        title = f"step {step}: sampling{' further' if asked.earlier else ''}"
        with (
            self.display.bar(title, len(questions)) as bar,
            in_background(judge) as (submit, judged),
        ):

            def on_group(group: CompletionGroup) -> None:
                submit(asked.with_greedy(group))
                over = [f for f in list(judged.values()) if f.done()]
                votes = [vote_of(f.result()) for f in over if f.exception() is None]
                ratio = fmean(vote.majority_ratio for vote in votes) if votes else None
                bar.advance("" if ratio is None else f"majority ratio {ratio:.2f}")

            noted = self.scorer.top_logprobs
            ask = PoolAsk(self.pool, settings.rollout.temperature, early, noted)
            groups = self.workflow.run(ask, questions, step, on_group)
            refuse_other_groups(groups, questions, settings.rollout.workflow)
            self.pool.forget(later_prompts(groups))  # else a checkpoint would grow with them
            groups = list(map(asked.with_greedy, groups))
            self._keep(asked, groups)
            return groups, {id: future.result() for id, future in judged.items()}

    def _label(
        self,
        source: AfterVoting,
        asked: _Asked,
        groups: Sequence[CompletionGroup],
        votes: Mapping[str, Vote],
        rollout: Rollout,
    ) -> tuple[list[CompletionGroup], dict[str, Estimate]]:
        """Let the votes' groups have labels; return what `_sample` does, of estimates.

        Returns:
            The groups, with what the policy was asked about them, and the estimates of this rank's.
        """
        assert self.free_prompts is not None  # `ttrl.build` makes them for such a source
        ask = FreePass(self.settings, self.free_prompts, self.pool, self.ranks, asked.step)
        own = [g for g in groups if (vote := votes.get(g.question.id)) and _counts(vote, g)]
        with self.display.bar(f"step {asked.step}: labels", 1):
            voted = [(group, votes[group.question.id]) for group in own]
            labels = source.labels_from(voted, asked.step, ask)
        rollout.free_pass_s += ask.seconds
        groups = [replace(g, passes=tuple(ask.groups.get(g.question.id, ()))) for g in groups]
        self._keep(asked, groups)

        def judge(group: CompletionGroup) -> Estimate:
            vote = votes[group.question.id]
            return self.scorer.estimate(group, labels, asked.step, vote)

        with in_background(judge) as (submit, judged):
            for group in own:
                submit(group)
        return groups, {id: future.result() for id, future in judged.items()}

    def _keep(self, asked: _Asked, groups: Sequence[CompletionGroup]) -> None:
        keep = partial(self.folder.keep_answers, asked.step, [*asked.earlier, *groups])
        self.ranks.on_rank_zero(keep)

    def _keep_proposals(self, posed: PosedPhase, step: int) -> None:
        self.ranks.on_rank_zero(partial(self.folder.keep_proposals, step, posed.lines()))

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


def _counts(vote: Vote, group: CompletionGroup) -> bool:
    """Say whether it is this group that has voted; `estimate_of` refuses the others."""
    return len(vote.answers_G) == len(group.completions)
