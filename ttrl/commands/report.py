"""``ttrl report``: one HTML page about one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ttrl.types import UserError


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page, which may exist.",
            show_default="report.html in the run's folder; of several runs, here",
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Also write each plot as SVG and PNG into this folder.")
    ] = None,
) -> None:
    """Write a page with curves and answers of runs, side by side; it needs no network."""
    from ttrl.answers import default_grader
    from ttrl.commands.runs import references
    from ttrl.report.page.drawing import write_plots
    from ttrl.report.page.figures import figures
    from ttrl.report.page.page import named_runs, write_page
    from ttrl.report.run_record import read_run

    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file in it")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice; name each once")
    records = [read_run(run) for run in runs]
    write_page(path, records, [references(record) for record in records], default_grader())
    print(path)
    if plots is not None:
        written = write_plots(figures(named_runs(records)), plots)
        print(f"{plots}: {len(written)} files")
