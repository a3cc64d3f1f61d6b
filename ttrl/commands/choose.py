"""``ttrl choose``: which questions to train on alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ttrl.report.choice import By
from ttrl.report.tables import Format


def choose(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run that has voted on them.", show_default=False)
    ],
    by: Annotated[
        By,
        typer.Option(
            help="half: the majority's share at the first visit is nearest to one half. "
            "variance: that share varies most over the visits."
        ),
    ] = "half",
    count: Annotated[int, typer.Option(min=1, help="Choose so many.")] = 1,
    shown: Annotated[Format, typer.Option("--format", help="How to show it.")] = "console",
) -> None:
    """Choose the questions to train on alone, by a run's votes; no label is read."""
    from ttrl.report.choice import chosen, settings_for, visited
    from ttrl.report.run_record import read_run
    from ttrl.report.tables import TextTable, write

    record = read_run(run)
    found = chosen(visited(record), by, count)
    rows = tuple(
        (json.dumps(question.id), " ".join(f"{share:.3f}" for share in question.shares))
        for question in found
    )
    words = " ".join(
        f"--set {shlex.quote(setting)}" for setting in settings_for(found, record.settings)
    )
    how = "train on them, with about as many answers in a step as that run:"
    on_screen = shown == "console"
    note = how if on_screen else f"{how} {words}"
    write([TextTable(f"chosen by {by}", ("id", "share at each visit"), rows, (note,))], shown)
    if on_screen:
        print(words)  # in one line, to be copied
