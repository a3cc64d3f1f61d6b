"""The numbers of a row of the paper: over seeds, with both upper bounds, by level."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from ttrl.report.display import signed
from ttrl.report.evaluation_tables import INTERVAL, refuse_unlike, upper_bound, with_error
from ttrl.report.results import EvaluationResult, Mean, QuestionScores, load_results
from ttrl.report.run_record import RunRecord, read_run
from ttrl.report.tables import TextTable
from ttrl.report.verdict import before_and_after
from ttrl.reproduce.experiment import Experiment
from ttrl.types import UserError

Role = Literal["trained on", "held out", "out of domain"]
Results = Sequence[EvaluationResult]
"""One for each seed."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A number over seeds and questions.

    Example: ``Figure(value=0.877, half_width=0.021, sd_of_seeds=0.006)``.
    """

    value: float
    """The mean."""
    half_width: float | None
    """Half of its 95 % interval over questions, each a mean over seeds; None of one question."""
    sd_of_seeds: float | None
    """Standard deviation of the seeds' means; None of one seed."""

    def text(self, unit: float = 100.0, *, sign: bool = False) -> str:
        """Write a number with its spreads in %: "87.7 ± 2.1 (sd 0.6)"."""
        sd = "" if self.sd_of_seeds is None else f" (sd {unit * self.sd_of_seeds:.1f})"
        return with_error(Mean(self.value, self.half_width, 0), unit, sign=sign) + sd


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a row says of some questions; scores are fractions of 1."""

    count: int
    """How many questions."""
    before: Figure
    """pass@1."""
    after: Figure
    gain: Figure
    relative_gain: float | None
    """Of the score before; None where that is 0."""
    votes: Figure | None
    """The first upper bound, maj@n of the starting model."""
    with_labels: Figure | None
    """The second, pass@1 after training with the labels; None: not measured on these."""
    tokens_before: Figure | None
    """Tokens of an answer."""
    tokens_after: Figure | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on some questions."""

    questions: str
    """The data set."""
    role: Role
    before: Results
    after: Results
    with_labels: Results = ()
    """After training with the labels; empty: that was left out, or not measured on these."""

    @property
    def vote(self) -> str | None:
        """The name of the first upper bound: "maj@16"."""
        return upper_bound(self.before[0])

    @property
    def levels(self) -> list[str]:
        """Levels, sorted."""
        return self.before[0].levels

    def numbers(self, level: str | None = None) -> Numbers:
        """Compute the row (of one level).

        Raises:
            UserError: if before and after are no pair, or seeds were measured on other questions.
        """
        for pair in zip(self.before, self.after, strict=True):
            refuse_unlike(*pair)
        gain = over_seeds(self.after).gain(over_seeds(self.before), "pass@1", level)
        gains = [
            new.gain(old, "pass@1", level).value
            for old, new in zip(self.before, self.after, strict=True)
        ]
        before = figure(self.before, "pass@1", level)
        return Numbers(
            count=gain.questions,
            before=before,
            after=figure(self.after, "pass@1", level),
            gain=Figure(gain.value, gain.half_width, _sd(gains)),
            relative_gain=gain.value / before.value if before.value else None,
            votes=None if self.vote is None else figure(self.before, self.vote, level),
            with_labels=figure(self.with_labels, "pass@1", level) if self.with_labels else None,
            tokens_before=_tokens(self.before, level),
            tokens_after=_tokens(self.after, level),
        )


def over_seeds(results: Results) -> EvaluationResult:
    """Average each question's scores over seeds, so that intervals are over questions.

    Raises:
        UserError: if the seeds were measured on different questions.
    """
    first = results[0]
    by_seed = [{q.id: q.scores for q in result.questions} for result in results]
    if any(scores.keys() != by_seed[0].keys() for scores in by_seed):
        raise UserError(f"the seeds were measured on different questions of {first.data}")
    questions = tuple(
        QuestionScores(
            q.id,
            {name: fmean(scores[q.id][name] for scores in by_seed) for name in q.scores},
            q.level,
        )
        for q in first.questions
    )
    return EvaluationResult(first.model, first.data, first.sampling, questions, first.step)


def figure(results: Results, name: str, level: str | None = None) -> Figure:
    """Return the mean of a score over questions (of a level) and seeds, and its spreads."""
    mean = over_seeds(results).mean(name, level)
    return Figure(mean.value, mean.half_width, _sd([r.mean(name, level).value for r in results]))


def collect(experiment: Experiment) -> list[Measured]:
    """Read what all stages have measured: the questions that are trained on first.

    Raises:
        UserError: if a stage has not been done, or its result cannot be read.
    """
    data = experiment.settings.data
    named: tuple[tuple[str, str | None, Role], ...] = (
        ("train", data.train, "trained on"),
        ("held_out", data.held_out, "held out"),
    )
    pairs = [_pairs(read_run(experiment.run("ttrl", seed))) for seed in experiment.seeds]
    labelled = [
        _pairs(read_run(experiment.run("labels", seed)))
        for seed in (experiment.seeds if experiment.labels else ())
    ]
    found = [
        Measured(
            questions or name,
            role,
            [pair[name][0] for pair in pairs],
            [pair[name][1] for pair in pairs],
            [pair[name][1] for pair in labelled],
        )
        for name, questions, role in named
        if name in pairs[0]
    ]
    for other in experiment.others:
        before, after = (
            [load_results(experiment.evaluation(seed, when, other))[0] for seed in experiment.seeds]
            for when in ("before", "after")
        )
        found.append(Measured(other.name, "out of domain", before, after))
    return found


def stopped(experiment: Experiment) -> list[str]:
    """Say which runs were stopped before their last step, and why."""
    runs = [experiment.run(arm, seed) for seed in experiment.seeds for arm in experiment.arms]
    summaries = [(run, read_run(run).summary or {}) for run in runs]
    return [
        f"{run.parent.name}/{run.name} was stopped after {summary['steps']} steps: "
        f"{summary['stopped']}."
        for run, summary in summaries
        if summary.get("stopped")
    ]


def tables(experiment: Experiment, measured: Sequence[Measured]) -> list[TextTable]:
    """Make the table of the row, and one by level for all questions that have levels."""
    settings, seeds = experiment.settings, experiment.seeds
    title = (
        f"{settings.model.path}, pass@1 in %, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    )
    spread = " sd: standard deviation over seeds." if len(seeds) > 1 else ""
    vote = f"{measured[0].vote or 'vote'} before"
    numbers = [m.numbers() for m in measured]
    relative = [n.relative_gain for n in numbers]
    rows: tuple[tuple[str, ...], ...] = (
        ("before", *(n.before.text() for n in numbers)),
        ("after", *(n.after.text() for n in numbers)),
        ("gain", *(n.gain.text(sign=True) for n in numbers)),
        ("relative", *("" if r is None else f"{signed(100 * r)} %" for r in relative)),
        (vote, *(_text(n.votes) for n in numbers)),
        ("with labels", *(_text(n.with_labels) for n in numbers)),
    )
    notes = (
        INTERVAL + spread,
        f"Upper bounds: {vote}; trained with the labels"
        + ("." if experiment.labels else ", which was left out."),
        *stopped(experiment),
    )
    columns = (
        "",
        *(f"{m.questions} ({m.role}, {n.count})" for m, n in zip(measured, numbers, strict=True)),
    )
    return [
        TextTable(title, columns, rows, notes),
        *(_by_level(m) for m in measured if m.levels),
    ]


def result_json(experiment: Experiment, measured: Sequence[Measured]) -> str:
    """Return the content of ``result.json``: the numbers of the tables, as fractions of 1."""
    rows: list[dict[str, Any]] = [
        {
            "questions": m.questions,
            "role": m.role,
            "vote": m.vote,
            **asdict(m.numbers()),
            "levels": {level: asdict(m.numbers(level)) for level in m.levels},
        }
        for m in measured
    ]
    found = {
        "format": FORMAT,
        "name": experiment.settings.name,
        "model": experiment.settings.model.path,
        "seeds": experiment.seeds,
        "stopped": stopped(experiment),
        "rows": rows,
    }
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def _by_level(measured: Measured) -> TextTable:
    rows = []
    for level in measured.levels:
        n = measured.numbers(level)
        lengths = (_text(f, 1.0) for f in (n.tokens_before, n.tokens_after))
        scores = (n.before.text(), n.after.text(), n.gain.text(sign=True))
        rows.append((f"{level} ({n.count})", *scores, _text(n.with_labels), *lengths))
    columns = ("level", "before", "after", "gain", "with labels", "tokens before", "tokens after")
    return TextTable(
        f"{measured.questions} ({measured.role}) by level, pass@1 in %, and tokens of an answer",
        columns,
        tuple(rows),
    )


def _pairs(run: RunRecord) -> dict[str, tuple[EvaluationResult, EvaluationResult]]:
    if run.summary is None:
        raise UserError(f"{run.path} has not come to its end: give the command again")
    return {before.data: (before, after) for before, after in before_and_after(run.evaluations())}


def _tokens(results: Results, level: str | None) -> Figure | None:
    known = "response_tokens" in results[0].names
    return figure(results, "response_tokens", level) if known else None


def _text(figure: Figure | None, unit: float = 100.0) -> str:
    return "" if figure is None else figure.text(unit)


def _sd(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
