"""``ttrl runs``, ``show`` and ``compare``: what runs have left."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl.report.tables import Format, printable
from ttrl.types import UserError

if TYPE_CHECKING:
    from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
    from ttrl.report.run_record import RunRecord
    from ttrl.types import Turn

A_RUN = typer.Argument(help="A run's folder.", show_default=False)
SHOWN = 400
"""Characters of an answer that are shown at its end, where its result should be."""


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    shown: Annotated[Format, typer.Option("--format", help="How to show it.")] = "console",
) -> None:
    """List the runs in a folder, with how each stands and how it went."""
    from ttrl.report.run_record import is_run, read_run
    from ttrl.report.run_tables import runs_table
    from ttrl.report.tables import write

    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; runs are in runs/ unless --run-dir says else"
        )
    found: list[RunRecord | tuple[Path, str]] = []
    for path in sorted(folder.iterdir()):
        if is_run(path):
            try:
                found.append(read_run(path))
            except (UserError, OSError) as error:  # of another version, or broken: list the others
                found.append((path, str(error)))
    if not found:
        raise UserError(f"{folder} holds no run: a run's folder has a config.toml")
    write([runs_table(found)], shown)


def compare(
    first: Annotated[Path, A_RUN],
    second: Annotated[Path, A_RUN],
    shown: Annotated[Format, typer.Option("--format", help="How to show it.")] = "console",
) -> None:
    """Compare two runs: settings that differ, what was measured, and figures of the steps."""
    from ttrl.report.run_record import read_run
    from ttrl.report.run_tables import comparison_tables
    from ttrl.report.tables import write

    write(comparison_tables(read_run(first), read_run(second)), shown)


def show(
    run: Annotated[Path, A_RUN],
    step: Annotated[
        int | None,
        typer.Option(help="Show the answers of this step.", show_default="the last one"),
    ] = None,
    questions: Annotated[int, typer.Option(min=0, help="Show so many questions.")] = 3,
    answers: Annotated[int, typer.Option(min=1, help="Show so many answers of each.")] = 2,
) -> None:
    """Show a run's curves, how it went, and answers: those with wrong majorities first."""
    from rich.console import Console

    from ttrl.report.curves import curve_line
    from ttrl.report.run_record import read_run
    from ttrl.report.verdict import verdict

    record = read_run(run)
    width = min(100, Console().width)
    stopped = record.summary and record.summary["stopped"]
    why = f" ({printable(stopped)})" if stopped else ""
    print(f"{run}: {record.state} after {len(record.steps)} steps{why}")
    print(textwrap.fill(f"{verdict(record)}.", 80), end="\n\n")
    for name in _curves(record):
        print(curve_line(name, record.curve(name), width))
    if not record.sampled or not questions:
        return
    at = record.sampled[-1] if step is None else step
    if at not in record.sampled:
        raise UserError(
            f"--step {at}: {run} has the answers of steps {record.sampled[0]} to "
            f"{record.sampled[-1]}"
        )
    right = references(record)
    groups = _worst_first(record.groups(at), right)
    print(f"\nstep {at}: {min(questions, len(groups))} of {len(groups)} questions, worst first")
    for group in groups[:questions]:
        print("\n".join(_described(group, right.get(group.question), answers)))


def _curves(record: RunRecord) -> list[str]:
    """Choose the metrics that say most, in the order in which to look at them."""
    wanted = (
        "eval/train/pass@1",
        "eval/held_out/pass@1",
        "stream/first_accuracy_mean",
        "stream/first_accuracy_last_third",
        "stream/majority_accuracy_mean",
        "stream/majority_accuracy_last_third",
        "stream/adapted_first_accuracy_mean",
        "vote/majority_ratio",
        "label/label_accuracy",
        "vote/abstention_share",
        "vote/distinct_answers",
        "vote/flip_rate",
        "rollout/response_tokens_mean",
        "policy/entropy",
        "policy/grad_norm",
        "mismatch/kl",
    )
    return [name for name in wanted if len(record.curve(name)) > 1]


def references(record: RunRecord) -> dict[str, str]:
    """Return the reference answers of the run's questions; empty, and said, if they are unknown."""
    from ttrl.run.references import references as read

    try:
        return read(record)
    except (UserError, OSError) as error:
        print(f"\nreference answers are not known: {error}")
        return {}


def _worst_first(groups: Sequence[RecordedGroup], right: dict[str, str]) -> list[RecordedGroup]:
    """Sort: wrong majorities, most convinced first; then the others, least sure first."""
    from ttrl.answers import default_grader

    grader = default_grader()

    def wrong(group: RecordedGroup) -> bool:
        reference = right.get(group.question)
        return reference is not None and not grader.agree([group.label], reference)[0]

    return sorted(
        groups,
        key=lambda g: (0, -g.majority_ratio) if wrong(g) else (1, g.majority_ratio),
    )


def _described(group: RecordedGroup, reference: str | None, answers: int) -> Iterator[str]:
    """Yield the lines about one question; what a model wrote is quoted, as it may be anything."""
    known = "" if reference is None else f", reference {reference!r}"
    yield f"\n{printable(group.question)}: {group.prompt[-SHOWN:]!r}"
    if not group.judged:
        yield f"  {len(group.answers)} answers, whose votes were not counted"
    else:
        yield f"  majority {group.label!r} with {group.majority_ratio:.0%} of the votes{known}"
    kinds = {_said(answer): answer for answer in reversed(group.answers)}
    votes = [_said(answer) for answer in group.answers]
    for kind in sorted(kinds, key=votes.count, reverse=True)[:answers]:
        answer = kinds[kind]
        ended = "cut off" if answer.truncated else "complete"
        who = "" if answer.turn is None else f", {_who(answer.turn)}"
        yield f"  {votes.count(kind)} {kind} ({answer.tokens} tokens, {ended}{who}):"
        yield f"    {'...' if len(answer.text) > SHOWN else ''}{answer.text[-SHOWN:]!r}"


def _who(turn: Turn) -> str:
    """Name the agent of an answer, as the report does."""
    return f"by {printable(turn.role)} {turn.agent + 1} in turn {turn.index + 1}"


def _said(answer: RecordedAnswer) -> str:
    """Say what was read from a text: an answer, or what a verifier makes of another's."""
    if not answer.is_verdict:
        return f"said {answer.answer!r}"
    said = {True: "right", False: "wrong", None: "neither right nor wrong"}[answer.verdict]
    return f"judged a solution: {said}"
