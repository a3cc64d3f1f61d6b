"""What a model scores on a data set: typed, with intervals, saved and loaded as JSON.

Samples are nested in questions: sixteen answers to one question say little about another. So a
score is first computed per question, and its error is that of the mean over questions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from ttrl.report.selection import Selection
from ttrl.types import UserError

Scores = dict[str, float]
"""Score by name, fractions of 1: "pass@1", "maj@16", "greedy", "truncated_share" ..."""

FORMAT = 1
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions, with its confidence interval.

    Example: ``mean_of([0, 1, 1, 1])`` is ``Mean(value=0.75, half_width=0.49, questions=4)``.
    """

    value: float
    """The mean."""
    half_width: float | None
    """Half the width of the 95 % interval around it; None where one question says nothing of it."""
    questions: int
    """Over how many questions."""


def mean_of(values: Sequence[float]) -> Mean:
    """Compute a mean over questions and its interval, x̄ ± 1.96·s/√n.

    By the central limit theorem, as Miller proposes (Adding Error Bars to Evals, arXiv
    2411.00640). With s of the questions' means it holds however alike the answers to a question
    are; of few questions, or where nearly all are right or wrong, it is too narrow.

    Raises:
        ValueError: without values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no questions")
    half = None
    if n > 1:
        half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * stdev(values) / math.sqrt(n)
    return Mean(fmean(values), half, n)


@dataclass(frozen=True, slots=True)
class QuestionScores:
    """The scores of the answers to one question.

    Example: ``QuestionScores("q1", {"pass@1": 0.25, "maj@4": 0.0}, level="3")``.
    """

    id: str
    """The question."""
    scores: Scores
    """Expected over its answers."""
    level: str | None = None
    """Difficulty, where the data set has levels."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What a model scored on the questions of a data set that have an answer.

    Example: ``result.mean("pass@1").value``, ``result.flat()["maj@16/level=3"]``,
    ``load_results(path)[0].questions[0].scores``.
    """

    model: str
    """A folder or hub name, as it was given."""
    data: str
    """The data set, as it was given."""
    sampling: Mapping[str, float]
    """How its answers were sampled: samples, temperature, top_p, max_new_tokens, seed; empty where
    they were recorded."""
    questions: tuple[QuestionScores, ...]
    """In the order of the data set."""
    step: int | None = None
    """Training step that it was measured after, 0 for before; None: not in a run."""
    selection: Selection | None = None
    """What rules chose among the answers, see `ttrl.selection`; None: none was asked for."""
    stopped_early: str | None = None
    """The rule that sampling stopped early for; then the scores are what it chose and took, see
    `ttrl.selection.online`."""

    @property
    def names(self) -> list[str]:
        """Names of the scores."""
        return list(self.questions[0].scores) if self.questions else []

    @property
    def levels(self) -> list[str]:
        """Levels, sorted."""
        return sorted({q.level for q in self.questions if q.level is not None})

    def at(self, level: str | None) -> tuple[QuestionScores, ...]:
        """Return the questions of a level; of None, all."""
        return tuple(q for q in self.questions if level is None or q.level == level)

    def mean(self, name: str, level: str | None = None) -> Mean:
        """Return the mean of a score over the questions (of one level), with its interval.

        Raises:
            UserError: if it was not measured.
        """
        self._refuse_unmeasured(name)
        return mean_of([q.scores[name] for q in self.at(level)])

    def gain(self, before: EvaluationResult, name: str, level: str | None = None) -> Mean:
        """Return how much better this is than ``before``, question by question.

        The differences of pairs have a narrower interval than that of the two means.

        Raises:
            UserError: if other questions were asked then.
        """
        then = {q.id: q.scores for q in before.questions}
        if then.keys() != {q.id for q in self.questions}:
            raise UserError(
                f"{before.model} and {self.model} were measured on different questions of "
                f"{self.data}: measure both again"
            )
        for result in (before, self):
            result._refuse_unmeasured(name)
        return mean_of([q.scores[name] - then[q.id][name] for q in self.at(level)])

    def _refuse_unmeasured(self, name: str) -> None:
        if not self.questions or any(name not in q.scores for q in self.questions):
            raise UserError(f"{self.model} was measured without {name}: measure it again")

    def flat(self) -> Scores:
        """Return the means by name, and again by level: "pass@1", "pass@1/level=3"."""
        found = {name: fmean(q.scores[name] for q in self.questions) for name in self.names}
        for level in self.levels:
            at = self.at(level)
            found |= {
                f"{name}/level={level}": fmean(q.scores[name] for q in at) for name in self.names
            }
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON: first the means and intervals, then what `load` reads."""
        means = {name: asdict(self.mean(name)) for name in self.names}
        by_level = {
            level: {name: asdict(self.mean(name, level)) for name in self.names}
            for level in self.levels
        }
        found = {"means": means, "by_level": by_level, **asdict(self)}
        if self.selection is None:
            del found["selection"]
        if self.stopped_early is None:
            del found["stopped_early"]
        return found

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> EvaluationResult:
        """Return what `as_json` was made of.

        Raises:
            ValueError, KeyError, TypeError: if it was not.
        """
        step = saved["step"]
        if step is not None and not is_count(step):
            raise ValueError(f"step = {step!r}: expected a whole number from 0 on, or null")
        questions = tuple(map(_question, saved["questions"]))
        if not questions or any(q.scores.keys() != questions[0].scores.keys() for q in questions):
            raise ValueError("expected one question or more, all with the same scores")
        return cls(
            model=_text("model", saved["model"]),
            data=_text("data", saved["data"]),
            sampling=dict(saved["sampling"]),
            questions=questions,
            step=step,
            selection=Selection.of_json(chosen) if (chosen := saved.get("selection")) else None,
            stopped_early=saved.get("stopped_early"),
        )


def _question(saved: Mapping[str, Any]) -> QuestionScores:
    """Read the scores of a question; a ValueError says what of them is none."""
    id, level, scores = _text("id", saved["id"]), saved["level"], dict(saved["scores"])
    for name, value in scores.items():
        if not is_number(value):
            raise ValueError(f"question {id!r}: {name} = {value!r}: expected a finite number")
    return QuestionScores(id, scores, None if level is None else _text("level", level))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r}: expected text")
    return value


def is_count(value: object) -> bool:
    """Say whether a value that was read is a whole number from 0 on, and no larger than a step."""
    return type(value) is int and 0 <= value < 2**53  # true is an int, too


def is_number(value: object) -> bool:
    """Say whether a value that was read is a finite number."""
    if type(value) is int:
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def results_json(results: Iterable[EvaluationResult]) -> str:
    """Return the content of a file that `load_results` reads."""
    saved = {"format": FORMAT, "results": [result.as_json() for result in results]}
    return json.dumps(saved, indent=2, allow_nan=False) + "\n"


def load_results(path: Path) -> list[EvaluationResult]:
    """Load what ``ttrl eval --json`` or a run (``evaluations/step_00000.json``) has saved.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']}")
        return [EvaluationResult.of_json(result) for result in saved["results"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"cannot read results from {path}: {type(error).__name__}: {error}; expected a file "
            f"of `ttrl eval --json`, format {FORMAT}"
        ) from error
