"""The ways to spend tokens, each measured on the same questions.

A method is a function of `Measuring` that yields points; its name is what ``ttrl scale`` calls it.
Another one is a function, here or in a file of its own, and a line in `METHODS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from ttrl.evaluation.metrics import maj_at_k, pass_at_k
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.scaling.choices import best_of, weighted
from ttrl.scaling.conversations import SHAPES, in_turns
from ttrl.scaling.folder import Kept
from ttrl.scaling.measuring import Measuring
from ttrl.scaling.points import Point
from ttrl.scaling.training import trained_points
from ttrl.search import SEARCHES, Found, SearchParams, search


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
    for n in on.counts:
        scores = [best_of(one, n) for one in on.candidates()]
        yield on.point("best-of-n", n, scores, scored=True)


def weighted_votes(on: Measuring) -> Iterator[Point]:
    """Vote, where an answer weighs what the reward model makes of it."""
    settings = on.evaluation.settings.selection
    for n in on.counts:
        scores = [weighted(one, n, settings) for one in on.candidates()]
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
    """Say whether what best-of-n chooses among the solutions is right."""
    solutions = tuple(RecordedAnswer(s.text, s.tokens, s.truncated) for s in found.solutions)
    group = RecordedGroup(found.question.id, found.question.prompt, solutions)
    candidates = on.read(group, [s.score for s in found.solutions])
    return best_of(candidates, len(candidates)) if len(candidates) else 0.0


def training(on: Measuring) -> Iterator[Point]:
    """Train on the questions, without their answers, and answer once; see `trained_points`."""
    assert on.folder is not None  # the command asks for one
    return trained_points(on.evaluation.settings, on.folder.training, on.display)


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


def measured(name: str, on: Measuring) -> Iterator[Point]:
    """Yield the points of a method: those that the folder has, and then those that it lacks.

    The points of a search are kept one by one, since each is a search of its own; any other method
    makes all of its points from the same answers.
    """
    if on.folder is None or name == "training":  # whose run is kept
        yield from METHODS[name](on)
        return
    about = about_of(name, on.counts, on.width, on.model and on.model[0])
    kept = on.folder.kept(name, about)
    if not kept.whole:
        there = {point.n for point in kept.points} if name in SEARCHES else set()
        points = [point for point in kept.points if point.n in there]
        yield from points
        for point in METHODS[name](_without(on, there)):
            points.append(point)
            on.folder.keep(name, about, Kept(tuple(points)))
            yield point
        on.folder.keep(name, about, Kept(tuple(points), whole=True))
        return
    yield from kept.points


def _without(on: Measuring, there: Collection[int]) -> Measuring:
    """Return what a search is measured with, but for numbers that it was measured with before."""
    if not there:
        return on
    counts = [n for n in on.counts if n not in there]
    return replace(on, counts=counts, open_pool=lambda: on.pool)


def about_of(
    name: str, counts: Sequence[int], width: int, reward_model: str | None
) -> dict[str, Any]:
    """Return what decides a method's points, beside the settings."""
    about: dict[str, Any] = {"n": list(counts)}
    if name in ("best-of-n", "weighted", *SEARCHES):
        about["reward_model"] = reward_model
    if name in SEARCHES:
        about["width"] = width
    return about
