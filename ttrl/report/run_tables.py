"""Tables of runs: a list of them, and two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttrl.report.display import duration
from ttrl.report.evaluation_tables import gains_table
from ttrl.report.run_record import RunRecord
from ttrl.report.stream_scores import stream_scores
from ttrl.report.tables import TextTable
from ttrl.report.verdict import before_and_after, verdict
from ttrl.types import UserError

FIGURES = (
    "vote/majority_ratio",
    "vote/abstention_share",
    "vote/flip_rate",
    "label/label_accuracy",
    "stream/first_accuracy_mean",
    "stream/first_accuracy_last_third",
    "stream/majority_accuracy_mean",
    "stream/majority_accuracy_last_third",
    "rollout/response_tokens_mean",
    "policy/entropy",
    "policy/grad_norm",
    "mismatch/kl",
)
"""Metrics of the last step that a comparison shows."""


def runs_table(found: Sequence[RunRecord | tuple[Path, str]]) -> TextTable:
    """Make a list of runs: how they stand and went; of one that cannot be read, why not."""
    rows: list[tuple[str, ...]] = []
    for run in found:
        if isinstance(run, RunRecord):
            try:
                rows.append(_row(run))
            except UserError as error:  # what it has measured is broken: the others are listed
                rows.append(_unreadable(run.path, str(error)))
        else:
            rows.append(_unreadable(*run))
    columns = ("run", "state", "steps", "time", "result", "pass@1", "held out")
    return TextTable("runs", columns, tuple(rows))


def _row(run: RunRecord) -> tuple[str, ...]:
    time = duration(run.summary["wall_s"]) if run.summary and "wall_s" in run.summary else ""
    pairs = {before.data: (before, after) for before, after in before_and_after(run.evaluations())}
    scores = [
        " → ".join(f"{100 * result.mean('pass@1').value:.1f}" for result in pairs.get(name, ()))
        for name in ("train", "held_out")
    ]
    if (arrived := stream_scores(run)) is not None and not scores[0]:
        whole, last = (100 * share for share in arrived.first)
        scores[0] = f"{whole:.1f}, last third {last:.1f}"
    return (run.path.name, run.state, str(len(run.steps)), time, verdict(run).kind, *scores)


def _unreadable(path: Path, why: str) -> tuple[str, ...]:
    return (path.name, "unreadable", "", "", why, "", "")


def comparison_tables(first: RunRecord, second: RunRecord) -> list[TextTable]:
    """Make tables of what differs between two runs: settings, scores at their end, last figures."""
    names = (str(first.path), str(second.path))
    then, now = first.settings.flat(), second.settings.flat()
    differ = [key for key in then | now if then.get(key) != now.get(key)]
    settings = tuple((key, str(then.get(key, "")), str(now.get(key, ""))) for key in differ)
    tables = [TextTable("settings that differ", ("", *names), settings)]
    ends = [
        {after.data: after for _, after in before_and_after(run.evaluations())}
        for run in (first, second)
    ]
    for name in (name for name in ends[0] if name in ends[1]):
        try:
            table = gains_table(ends[0][name], ends[1][name])
        except UserError as error:  # other questions: nothing can be said of a gain
            tables.append(TextTable(f"{name}: {error}", ("",), ()))
            continue
        title = f"{name} after training, in %"
        overall = tuple(row for row in table.rows if not row[0].startswith(" "))
        columns = ("", *(path.name for path in (first.path, second.path)), "gain", "relative")
        tables.append(TextTable(title, columns, overall, table.notes[:1]))
    rows = []
    for name in FIGURES:
        curves = [run.curve(name) for run in (first, second)]
        if any(curves):
            rows.append((name, *(f"{curve[-1][1]:.4g}" if curve else "" for curve in curves)))
    return [*tables, TextTable("in the last step", ("", *names), tuple(rows))]
