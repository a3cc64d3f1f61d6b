"""What a run shows while it goes on, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ttrl.report.tables import printable
from ttrl.settings import Settings

SHOWN_IDS = 8
STEP_LINE = (
    ("vote/majority_ratio", "majority ratio", ".2f"),
    ("label/label_accuracy", "label accuracy", ".2f"),
    ("vote/abstention_share", "abstained", ".0%"),
    ("free_pass/unlabelled_share", "without label", ".0%"),
)
"""Metrics that a step's line on the screen shows, each with its name and format there."""


class RateColumn(ProgressColumn):
    """Rate of a bar, in units per second."""

    def render(self, task: Task) -> Text:
        """Show the rate; blank until there is one."""
        return Text(f"{task.speed:.2g}/s" if task.speed else "")


class Display:
    """Progress on a terminal: a bar over the steps and one under it for the step's questions.

    Every step also leaves one line, so that a log file without bars tells the same story.
    """

    def __init__(self, console: Console) -> None:
        """Show progress on ``console``."""
        self.console = console
        self._steps: TaskID | None = None
        self._estimated = False
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextmanager
    def training(self, total: int | None, done: int = 0) -> Iterator[None]:
        """Show bars inside this context: one over the steps, others under it."""
        with self._progress:
            task = self._progress.add_task("training", total=total, completed=done, note="")
            self._steps = task
            yield

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """Show one bar, gone at the end of this context; also where nothing is trained."""
        progress = self._progress
        alone = not progress.disable and not progress.live.is_started
        with progress if alone else nullcontext():
            task = progress.add_task(title, total=total, note="")
            try:
                yield Bar(progress, task)
            finally:
                progress.remove_task(task)

    def header(
        self, settings: Settings, steps: int | None, sizes: Mapping[str, int], device: str
    ) -> None:
        """Print what will run, before a model is loaded.

        Args:
            settings: its settings.
            steps: how many it will make; None: until its stream ends.
            sizes: the numbers of questions, "train" and "held_out"; 0: they cannot be listed.
            device: what it computes on.
        """
        data, rollout = settings.data, settings.rollout
        train = f"{sizes['train']} of {data.train}" if sizes["train"] else data.train
        if data.source == "self_posed":
            train = f"its own, begun with {train}"
        if data.source == "stream":
            train = {"-": "those of standard input", "http": "those that are sent"}.get(
                train, train
            )
        if data.ids:
            named = ", ".join(map(repr, data.ids[:SHOWN_IDS]))
            more = ", ..." if len(data.ids) > SHOWN_IDS else ""
            train = f"{len(data.ids)} of the {train} (data.ids: {named}{more}); all are measured"
        if data.held_out:
            train += f"; held out: {sizes['held_out']} of {data.held_out}"
        many = "as long as questions come" if steps is None else str(steps)
        lines = {
            "model": f"{settings.model.path} ({settings.model.dtype})",
            "questions": train,
            "steps": f"{many}, of {rollout.questions_per_step} questions with {rollout.votes} "
            f"votes, by {rollout.engine}",
            "device": device,
        }
        for name, value in lines.items():
            self.note(f"{name:<10} {value}")

    def step(self, step: int, total: int | None, metrics: Mapping[str, Any]) -> None:
        """Print one line about a finished step, and advance the bar of steps."""
        parts = [f"step {step}" if total is None else f"step {step:>{len(str(total))}}/{total}"]
        parts += [f"{label} {metrics[k]:{form}}" for k, label, form in STEP_LINE if k in metrics]
        seconds = metrics.get("time/rollout_s", 0.0) + metrics.get("time/update_s", 0.0)
        parts += [f"{seconds:.1f} s"] if seconds else []
        self.note("  ".join(parts))
        self.measured(metrics, step)
        if self._steps is not None:
            self._progress.advance(self._steps)
        if seconds and not self._estimated and total is not None and step < total:
            rest = duration(seconds * (total - step))
            left = "the last step" if total - step == 1 else f"the {total - step} steps to come"
            self.note(f"about {rest} for {left}, {seconds:.1f} s each")
        self._estimated = True

    def measured(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Print the scores after a step, 0 for before training: a line for each set of questions.

        Args:
            metrics: which have them as ``eval/NAME/SCORE``; others, and levels, are left out.
            step: the step.
        """
        when = f"after step {step}" if step else "before training"
        scores: dict[str, list[str]] = {}
        for name, value in metrics.items():
            kind, _, rest = name.partition("/")
            evaluated, _, score = rest.partition("/")
            if kind == "eval" and is_rate(score):
                scores.setdefault(evaluated, []).append(f"{score} {100 * value:.1f}")
        for evaluated, shown in scores.items():
            self.note(f"measured {when}, {evaluated}: {'  '.join(shown)} (%)")

    def rejected(self, rows: Sequence[object]) -> None:
        """Print one line for each row that was left out of a data set."""
        for row in rows:
            self.note(f"rejected {row}")

    def note(self, text: str) -> None:
        """Print one line above the bars; what would control the terminal is shown by its code."""
        text = printable(text)
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Bar:
    """One progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        """Take the task that `Display.bar` has made."""
        self._progress = progress
        self._task = task

    def advance(self, note: str = "") -> None:
        """Advance the bar by one unit; ``note`` stands behind it."""
        self._progress.update(self._task, advance=1, note=note)


def duration(seconds: float) -> str:
    """Write a time as a person says it: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def signed(value: float) -> str:
    """Write a difference with its sign and one decimal; what rounds to nothing is +0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"


def is_rate(name: str) -> bool:
    """Say whether a score is one that tables show first, and not that of a level."""
    return ("@" in name or name in ("greedy", "outcome", "verdict")) and "/" not in name


def result_table(summary: Mapping[str, Any]) -> Table:
    """Make a table of before and after, as in the paper's Table 1, in percent, also by level."""
    rows = {"training (unlabeled)": summary, "held out": summary["held_out"]}
    if "others" in summary:
        rows = {"all of data.train": summary, "of these not trained on": summary["others"]} | {
            "held out": summary["held_out"]
        }
    measured = {name: row for name, row in rows.items() if row["before"]}
    scores = list(dict.fromkeys(n for row in measured.values() for n in row["before"]))
    scores = [n for n in scores if is_rate(n)]
    table = Table("questions", title="accuracy in %, before → after")
    for score in scores:
        table.add_column(score, justify="right")
    for title, row in measured.items():
        for level in _levels(row["before"]):
            keys = [_at_level(score, level) for score in scores]
            cells = [f"{100 * row['before'][k]:.1f} → {100 * row['after'][k]:.1f}" for k in keys]
            name = Text(f"  {level}" if level else title)
            table.add_row(name, *cells, style="dim" if level else "")
    votes = [int(score.removeprefix("maj@")) for score in scores if score.startswith("maj@")]
    if votes:
        table.caption = (
            f"pass@1: mean of {max(votes)} samples a question; maj@{max(votes)}: their vote"
        )
    return table


def stream_table(stream: Mapping[str, Any]) -> Table:
    """Make a table of a stream's prequential accuracy, in percent, as far as answers are known."""
    table = Table(
        f"{stream['scored']} of {stream['questions']} questions",
        title="a stream, each question before it was learned from, in %",
        caption=f"a question has cost {stream['tokens_per_question']:.0f} tokens and "
        f"{stream['seconds_per_question']:.2g} s",
    )
    for column in ("first sample", "majority"):
        table.add_column(column, justify="right")
    rows = {"all": ("", "mean"), "last third": ("", "last_third"), "adapted": ("adapted_", "mean")}
    for title, (when, over) in rows.items():
        keys = [f"{when}{kind}_accuracy_{over}" for kind in ("first", "majority")]
        if all(key in stream for key in keys):
            table.add_row(title, *(f"{100 * stream[key]:.1f}" for key in keys))
    return table


def _levels(scores: Mapping[str, float]) -> list[str]:
    """Return the levels of an evaluation's scores, as data set text; first "", all questions."""
    return list(dict.fromkeys(name.partition("/")[2] for name in scores))


def _at_level(name: str, level: str) -> str:
    return f"{name}/{level}" if level else name
