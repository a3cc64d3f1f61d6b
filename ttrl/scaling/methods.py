"""The ways to spend tokens, each measured on the same questions.

A method is a function of `Measuring` that yields points; its name is what ``ttrl scale`` calls it.
Another one is a function, here or in a file of its own, and a line in `METHODS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from ttrl.evaluation.evaluation import Evaluation
from ttrl.evaluation.metrics import maj_at_k, pass_at_k
from ttrl.report.display import Display
from ttrl.report.rollouts import RecordedGroup
from ttrl.reward_models import RewardModel, reduce
from ttrl.rollout.pool import RolloutPool
from ttrl.scaling.choices import best_of, weighted
from ttrl.scaling.conversations import SHAPES, in_turns
from ttrl.scaling.points import Point
from ttrl.scaling.training import trained_points
from ttrl.search import SEARCHES, Found, SearchParams, search
from ttrl.types import Question


@dataclass
class Measuring:
    """What every method is measured with; answers are sampled once, and scored once."""

    evaluation: Evaluation
    """The questions, how they are sampled, and who grades."""
    pool: RolloutPool
    """The model, untrained."""
    model: RewardModel | None
    """Scores solutions; None: no method needs it."""
    counts: Sequence[int]
    """Answers per question, from few to many."""
    width: int
    """How often a search goes on with a path that it keeps."""
    display: Display
    run: Path
    """The folder of the training run, which is made, or read if it is there."""
    seconds: float = field(default=0.0, init=False)
    """Seconds that the shared answers took."""
    _groups: list[RecordedGroup] = field(default_factory=list, init=False)
    _scores: list[list[float]] = field(default_factory=list, init=False)
    _scoring_s: float = field(default=0.0, init=False)

    @property
    def asked(self) -> list[Question]:
        """The questions that have an answer."""
        asked = self.evaluation.asked
        return [q for q in asked.questions if q.id in asked.key.answers]

    @property
    def reward_model(self) -> RewardModel:
        """The reward model, of a method that needs it."""
        assert self.model is not None
        return self.model

    def reference(self, id: str) -> str:
        """Return a question's answer."""
        return self.evaluation.asked.key.answers[id]

    def answers(self, group: RecordedGroup) -> list[str | None]:
        """Return what was answered."""
        return [self.evaluation.extract(a.text) for a in group.answers]

    def groups(self) -> list[RecordedGroup]:
        """Return ``max(counts)`` answers to each question, sampled when first asked for."""
        if not self._groups:
            begun = time.perf_counter()
            self._groups = self.evaluation.sample(self.pool, 0, self.display)
            self.seconds = time.perf_counter() - begun
        return self._groups

    def scores(self) -> list[list[float]]:
        """Return the reward model's score of each of those answers."""
        groups = self.groups()
        if not self._scores:
            begun, how = time.perf_counter(), self.evaluation.settings.reward_model.reduce
            by_id = {q.id: q for q in self.asked}
            with self.display.bar("scoring", len(groups)) as bar:
                for group in groups:
                    texts = [answer.text for answer in group.answers]
                    found = self.reward_model.scores(by_id[group.question], texts)
                    self._scores.append([reduce(steps, how) for steps in found])
                    bar.advance()
            self._scoring_s = time.perf_counter() - begun
        return self._scores

    def point(self, method: str, n: int, scores: Sequence[float], *, scored: bool) -> Point:
        """Return what a choice among n of the shared answers reached; it costs a share of them."""
        groups = self.groups()
        tokens = n * fmean(a.tokens for group in groups for a in group.answers)
        took = self.seconds + (self._scoring_s if scored else 0.0)
        share = n / len(groups[0].answers) / len(groups)
        read = tokens if scored else 0.0
        return Point(method, n, tuple(scores), tokens, read, seconds=took * share)


def majority(on: Measuring) -> Iterator[Point]:
    """Vote; of one answer, its own accuracy. Exact expectations over which n are drawn."""
    grader, groups = on.evaluation.grader, on.groups()
    for n in on.counts:
        scores = []
        for group in groups:
            answers, reference = on.answers(group), on.reference(group.question)
            if n == 1:
                right = sum(grader.agree(answers, reference))
                scores.append(pass_at_k(len(answers), right, 1))
            else:
                scores.append(maj_at_k(answers, reference, n, grader))
        yield on.point("majority", n, scores, scored=False)


def best_of_n(on: Measuring) -> Iterator[Point]:
    """Take the answer that the reward model likes most."""
    judged = []
    for group, scores in zip(on.groups(), on.scores(), strict=True):
        answers = on.answers(group)
        right = on.evaluation.grader.agree(answers, on.reference(group.question))
        judged.append((scores, answers, right))
    for n in on.counts:
        yield on.point("best-of-n", n, [best_of(*one, n) for one in judged], scored=True)


def weighted_votes(on: Measuring) -> Iterator[Point]:
    """Vote, where an answer weighs what the reward model makes of it."""
    grader = on.evaluation.grader
    for n in on.counts:
        scores = [
            weighted(found, on.answers(group), on.reference(group.question), n, grader)
            for group, found in zip(on.groups(), on.scores(), strict=True)
        ]
        yield on.point("weighted", n, scores, scored=True)


def searching(kind: str) -> Callable[[Measuring], Iterator[Point]]:
    """Return the method that searches step by step, and takes the best solution."""

    def measure(on: Measuring) -> Iterator[Point]:
        settings = on.evaluation.settings
        for n in [n for n in on.counts if n >= on.width and n % on.width == 0]:
            params = SearchParams(
                n=n,
                width=on.width,
                sampling=on.evaluation.sampling(0),
                reduce=settings.reward_model.reduce,
            )
            begun = time.perf_counter()
            with on.display.bar(f"searching: {kind}, n = {n}", 1):
                found = search(kind, on.pool, on.reward_model, on.asked, params)
            took = time.perf_counter() - begun
            yield Point(
                kind,
                n,
                tuple(_right(on, one) for one in found),
                fmean(one.tokens for one in found),
                fmean(one.scored_tokens for one in found),
                seconds=took / len(found),
            )

    return measure


def _right(on: Measuring, found: Found) -> float:
    """Say whether the best solution with an answer is right."""
    best = sorted(found.solutions, key=lambda solution: -solution.score)
    answers = [a for s in best if (a := on.evaluation.extract(s.text)) is not None]
    if not answers:
        return 0.0
    return float(on.evaluation.grader.agree(answers[:1], on.reference(found.question.id))[0])


def training(on: Measuring) -> Iterator[Point]:
    """Train on the questions, without their answers, and answer once; see `trained_points`."""
    return trained_points(on.evaluation.settings, on.run, on.display)


Method = Callable[[Measuring], Iterator[Point]]
METHODS: dict[str, Method] = {
    "majority": majority,
    "best-of-n": best_of_n,
    "weighted": weighted_votes,
    **{kind: searching(kind) for kind in SEARCHES},
    **{workflow: partial(in_turns, workflow=workflow) for workflow in SHAPES},
    "training": training,
}
"""Methods by name."""
