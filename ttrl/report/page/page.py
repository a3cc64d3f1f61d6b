"""A report as one HTML page: no network, no code from what a model wrote."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from ttrl.report.display import duration
from ttrl.report.page.drawing import SMOOTHED, svg
from ttrl.report.page.figures import Figure, Series, figures
from ttrl.report.page.history import History, Judge, history
from ttrl.report.run_record import RunRecord
from ttrl.report.verdict import verdict

RELOAD_S = 30
"""Seconds after which the page of a running run looks for a newer one."""

NAMED = 4
"""Runs that a title names, at most."""

FIRST_S = 300
"""Seconds, beside its steps, that a run may be silent: to measure, to save, to write its page."""

SCRIPTS = ("text.js", "curves.js", "questions.js", "page.js")
"""The page's code, one after the other in one script."""

STATES = {
    "finished": "finished",
    "stopped": "stopped early",
    "running": "running when this was written",
    "unfinished": "interrupted; it may go on with --resume",
}


def write_page(
    path: Path,
    runs: Sequence[RunRecord],
    references: Sequence[Mapping[str, str]],
    judge: Judge,
) -> None:
    """Write the report of some runs to a file that is whole, or still what it was.

    Args:
        path: an HTML file.
        runs: at least one.
        references: for each run its right answers by question; empty: they are not known.
        judge: says which answers are the same.

    Raises:
        OSError: if it cannot be written.
    """
    text = page(runs, references, judge)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def page(runs: Sequence[RunRecord], references: Sequence[Mapping[str, str]], judge: Judge) -> str:
    """Return the report as HTML; see `write_page`."""
    named = named_runs(runs)
    drawn = figures(named)
    histories = [
        history(run, known, judge, 1 / len(runs))
        for run, known in zip(runs, references, strict=True)
    ]
    written = datetime.now().astimezone()
    css, js = _resource("page.css"), "".join(map(_resource, SCRIPTS))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["blocks"] = _blocks
    template = environment.from_string(_resource("page.html.j2"))
    return template.render(
        title=title_of(named),
        runs=[_run(name, run) for name, run in named.items()],
        figures=[_figure(figure, len(runs) > 1) for figure in drawn],
        smoothed=any(len(series.points) > SMOOTHED for f in drawn for series in f.series),
        settings=_settings(list(named.values())),
        histories=histories,
        data=htmlsafe_json_dumps(_data(named, drawn, histories) | _alive(runs, written)),
        css=Markup(css),
        js=Markup(js),
        policy=(
            f"default-src 'none'; script-src '{_hash(js)}'; style-src '{_hash(css)}'; "
            "img-src blob: data:; base-uri 'none'; form-action 'none'"
        ),
        running=any(run.state == "running" for run in runs),
        reload_s=RELOAD_S,
        written=_time(written),
    )


def named_runs(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Name runs by their folders, with as many of those around as tell them apart.

    Example: "mine"; or "ttrl/seed_0" and "labels/seed_0".
    """
    paths = [run.path.resolve() for run in runs]
    named: dict[str, RunRecord] = {}
    for run, path in zip(runs, paths, strict=True):
        name = str(path)
        for parts in range(len(path.parts), 0, -1):
            tail = path.parts[-parts:]
            if [p.parts[-parts:] for p in paths].count(tail) == 1:
                name = "/".join(tail)
        named[name] = run
    return named


def title_of(named: Mapping[str, RunRecord]) -> str:
    """Title a page by its runs, or where these are many by the folder that they are in."""
    if len(named) <= NAMED:
        return ", ".join(named)
    common = os.path.commonpath([run.path.resolve().parent for run in named.values()])
    return f"{Path(common).name}: {len(named)} runs"


def described(figure: Figure, several: bool) -> str:
    """Say in words what a figure shows."""
    parts = [_described(series, figure.unit, several) for series in figure.series]
    parts += [f"{name}: {shown(value, figure.unit)}" for name, value in figure.bounds.items()]
    return f"{figure.title}. {'; '.join(parts)}."


def shown(value: float, unit: str) -> str:
    """Write a value with its unit."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g} {unit}".strip()


def _described(series: Series, unit: str, several: bool) -> str:
    (first, begin), (last, end) = series.points[0], series.points[-1]
    values = [value for _, value in series.points]
    name = f"{series.run}, {series.name}" if several else series.name
    return (
        f"{name}: {shown(begin, unit)} at step {first:.0f}, {shown(end, unit)} at step {last:.0f}, "
        f"between {shown(min(values), unit)} and {shown(max(values), unit)}"
    )


def _run(name: str, run: RunRecord) -> dict[str, Any]:
    """Return what the page says of a run at its top."""
    settings, summary = run.settings, run.summary or {}
    steps = str(summary.get("steps", len(run.steps)))
    stopped = summary.get("stopped")
    judged = verdict(run)
    return {
        "name": name,
        "model": settings.model.path,
        "data": settings.data.train,
        "held_out": settings.data.held_out,
        "state": STATES[run.state] + (f": {stopped}" if stopped else ""),
        "last_step": "" if summary or not run.written else _time(run.written),
        "running": run.state == "running",
        "steps": steps,
        "time": duration(summary["wall_s"]) if "wall_s" in summary else "",
        "asked": f"{settings.rollout.questions_per_step} questions, {settings.rollout.votes} votes "
        "each",
        "kind": judged.kind,
        "verdict": str(judged)[:1].upper() + str(judged)[1:],
    }


def _figure(figure: Figure, several: bool) -> dict[str, Any]:
    return {
        "title": figure.title,
        "unit": figure.unit,
        "note": figure.note,
        "alternative": described(figure, several),
        "svg": Markup(svg(figure).replace("<svg ", '<svg aria-hidden="true" ', 1)),
    }


def _settings(runs: Sequence[RunRecord]) -> list[tuple[str, list[str], bool]]:
    """Return (name, value in each run, whether they differ)."""
    flat = [run.settings.flat() for run in runs]
    names = dict.fromkeys(name for values in flat for name in values)
    rows = []
    for name in names:
        values = ["" if v.get(name) is None else str(v[name]) for v in flat]
        rows.append((name, values, len(set(values)) > 1))
    return rows


def _data(
    named: Mapping[str, RunRecord], drawn: Sequence[Figure], histories: Sequence[History]
) -> dict[str, Any]:
    """Return what the scripts read at once: numbers behind the figures, names and steps."""
    return {
        "runs": [
            {"name": name, "texts": sorted(kept.texts)}
            for name, kept in zip(named, histories, strict=True)
        ],
        "figures": [_numbers(figure) for figure in drawn],
    }


def _alive(runs: Sequence[RunRecord], written: datetime) -> dict[str, Any]:
    """Return what the page of a running run judges by whether it is still refreshed."""
    running = [run for run in runs if run.state == "running"]
    return {
        "reload_s": RELOAD_S if running else 0,
        "written_s": written.timestamp(),
        "silent_s": max(map(_longest_silence, running), default=0),
    }


def _longest_silence(run: RunRecord) -> float:
    """Return the seconds after which a running run should have written its page anew.

    It does so after a step, at most every ``report.every_s``. Three times the longest step so far
    leave room for one that is longer, and for measurements.
    """
    steps = (step.get("time/rollout_s", 0) + step.get("time/update_s", 0) for step in run.steps)
    return run.settings.report.every_s + 3 * max(steps, default=0) + FIRST_S


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S %Z")


def _numbers(figure: Figure) -> dict[str, Any]:
    steps = [step for series in figure.series for step, _ in series.points]
    return {
        "key": figure.key,
        "title": figure.title,
        "unit": figure.unit,
        "domain": [min(steps), max(max(steps), min(steps) + 1)],
        "series": [
            {
                "name": series.name,
                "run": series.run,
                "points": [[_rounded(x), _rounded(y)] for x, y in series.points],
            }
            for series in figure.series
        ],
        "bounds": {name: _rounded(value) for name, value in figure.bounds.items()},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _blocks(kept: History) -> list[tuple[str, str]]:
    """Return the packed parts of a run, with what names them on the page."""
    return [("questions", kept.questions), *((str(s), t) for s, t in sorted(kept.texts.items()))]


def _resource(name: str) -> str:
    return (files("ttrl.report.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Name an inline script or style as a Content-Security-Policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
