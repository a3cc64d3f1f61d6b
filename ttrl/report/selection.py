"""What rules that choose among answers are worth: accuracy against answers and tokens, typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ttrl.report.tables import TextTable


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions, and where 95 % of its bootstrap samples lie."""

    value: float
    """The mean."""
    low: float | None
    """2.5 % are below; None: one question says nothing of it."""
    high: float | None
    """2.5 % are above."""


@dataclass(frozen=True, slots=True)
class Point:
    """A rule with some number of answers."""

    answers: float
    """Answers per question, begun or whole; a mean where sampling stops early."""
    tokens: float
    """Sampled tokens per question, replies that the rule asked for among them."""
    accuracy: Interval
    """Questions whose chosen answer is right, as a fraction of 1."""
    majority_answers: int
    """As many answers as these tokens pay for, at most all of them: what ``gain`` compares with."""
    gain: Interval
    """Accuracy beyond that of the majority of so many, question by question."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A rule with more and more answers, or one way to stop early: then of one point."""

    name: str
    """Of the rule."""
    points: tuple[Point, ...]
    """By the number of answers."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What each rule chose on one data set."""

    answers: int
    """How many there were to each question."""
    tokens_per_answer: float
    """Their mean length."""
    curves: tuple[Curve, ...]
    """By rule, in the order in which they were asked for."""
    stops: tuple[Curve, ...]
    """Ways to stop sampling early, replayed."""
    notes: tuple[str, ...]
    """Sentences on what was computed."""

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> Selection:
        """Return what ``dataclasses.asdict`` was made of.

        Raises:
            KeyError, TypeError: if it was not.
        """
        return cls(
            answers=saved["answers"],
            tokens_per_answer=saved["tokens_per_answer"],
            curves=tuple(map(_curve, saved["curves"])),
            stops=tuple(map(_curve, saved["stops"])),
            notes=tuple(saved["notes"]),
        )


def selection_tables(title: str, selection: Selection) -> list[TextTable]:
    """Make the tables of a selection: accuracy by number of answers, and at equal tokens.

    Args:
        title: the model, and what it was asked.
        selection: what the rules chose.
    """
    numbers = sorted({int(p.answers) for curve in selection.curves for p in curve.points})
    length = selection.tokens_per_answer
    rows = [
        (curve.name, *(_percent(point.accuracy.value) for point in curve.points))
        for curve in selection.curves
    ]
    last = [(curve.name, curve.points[-1]) for curve in selection.curves]
    last += [(f"{curve.name}, early", curve.points[0]) for curve in selection.stops]
    saved = [
        f"{curve.name}, early: {point.answers:.1f} of {selection.answers} answers are begun, and "
        f"{_percent(1 - point.tokens / (selection.answers * length))} % of the tokens saved."
        for curve in selection.stops
        for point in curve.points
    ]
    return [
        TextTable(
            f"{title}: right, in %, of so many answers",
            ("", *map(str, numbers)),
            tuple(rows),
            (f"An answer has {length:.1f} tokens.", *selection.notes),
        ),
        TextTable(
            f"{title}: right, in %, and against the majority at equal tokens",
            ("", "tokens", "right", "95 %", "of", "gain", "95 %"),
            tuple(_row(name, point) for name, point in last),
            (
                "Gain: points beyond the majority of as many answers (of) as the tokens pay for. "
                "95 %: of resampled questions.",
                *saved,
            ),
        ),
    ]


def _row(name: str, point: Point) -> tuple[str, ...]:
    return (
        name,
        f"{point.tokens:.0f}",
        _percent(point.accuracy.value),
        _bounds(point.accuracy, _percent, "-"),
        str(point.majority_answers),
        _signed(point.gain.value),
        _bounds(point.gain, _signed, " to "),
    )


def _curve(saved: Mapping[str, Any]) -> Curve:
    points = (
        Point(
            **{
                **point,
                "accuracy": Interval(**point["accuracy"]),
                "gain": Interval(**point["gain"]),
            }
        )
        for point in saved["points"]
    )
    return Curve(saved["name"], tuple(points))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _bounds(interval: Interval, written: Callable[[float], str], between: str) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{written(interval.low)}{between}{written(interval.high)}"
