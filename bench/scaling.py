"""Measure accuracy against tokens of every way to spend them, over several seeds.

    .venv/bin/python bench/scaling.py           all that is missing; tables of docs/search.md
    .venv/bin/python bench/scaling.py --show    run nothing
    .venv/bin/python bench/scaling.py --show --write    and write page and plot

`ttrl scale` on the embedded task, with the model that ships and with one that has learned to read
solutions before a question (`bench/reader.py`), as agents do. Each run has one thread, and is kept
in ``bench/results/scaling.json`` at once; it is not made again. Seconds are not kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import reader
from kept_runs import KeptRuns, command_line, counted, spread, ttrl
from machine import ROOT
from pages import marked, write_into
from rich.console import Console

from ttrl.commands.scale import JUDGED
from ttrl.report.scaling_plot import Curve, scaling_svg
from ttrl.report.tables import TextTable
from ttrl.scaling import Factors, Point, best_within
from ttrl.scaling.points import budgets_of
from ttrl.scaling.report import budgets_table, cost_note

NAME = "bench/scaling.py"
RESULTS = ROOT / "bench" / "results" / "scaling.json"
PAGE, PLOT = ROOT / "docs" / "search.md", ROOT / "docs" / "images" / "scaling.svg"
DATA, REWARD_MODEL, NUMBERS = "arithmetic:train", "tiny-prm", (1, 4, 8, 16, 64)
MODELS = ("tiny-base", "reader")
ANSWERED = ("majority", "best-of-n", "weighted", "beam", "dvts", "debate", "mixture")
"""With the recipe tiny-agents, whose templates show the bare answers; the rest is of no matter."""
TRAINED = ("training",)
"""With tiny-arithmetic: TTRL alone."""
FACTORS = Factors()
STEPS = (0, 7, 28, 56)
"""Training steps that have a row in the tables."""
FIELDS = ("sampled", "read", "trained")


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="of training, instead of the recipe's")
    parser.add_argument("--reader", type=Path, help="what bench/reader.py has made; else: made")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the page's tables and plot")
    arguments = parser.parse_args()
    made_with = {"data": DATA, "reward_model": REWARD_MODEL, "numbers": NUMBERS}
    made_with |= {"methods": [*ANSWERED, *TRAINED], "steps": arguments.steps}
    made_with["reader"] = reader.MADE_WITH
    kept, console = KeptRuns(arguments.out, made_with), Console(stderr=True)
    record = kept.record
    if not arguments.show:
        with tempfile.TemporaryDirectory() as place:
            paths = {name: name for name in arguments.models}
            if "reader" in paths:
                paths["reader"] = str(reader.reader_at(arguments.reader, place))
            wanted = {
                (model, seed): (paths[model], seed, arguments.steps)
                for seed in arguments.seeds
                for model in arguments.models
            }
            kept.complete(run, wanted, arguments.jobs, console)
    every = [table for model in record["runs"] for table in tables(record, model)]
    print(marked(NAME, every))
    if arguments.write:
        write_into(PAGE, NAME, every)
        PLOT.write_text(drawn(record), encoding="utf-8")


def run(model: str, seed: int, steps: int | None) -> dict[str, Any]:
    """Return the points of a model with a seed: of answers, and of a training run."""
    numbers = [word for n in NUMBERS for word in ("--n", str(n))]
    common = [model, DATA, *numbers, "--set", f"seed={seed}", "--set", "threads=1"]
    answered = ["--recipe", "tiny-agents", "--methods", ",".join(ANSWERED)]
    answered += ["--reward-model", REWARD_MODEL]
    trained = ["--recipe", "tiny-arithmetic", "--methods", ",".join(TRAINED), "--run-dir", "run"]
    trained += [] if steps is None else ["--set", f"max_steps={steps}"]
    with tempfile.TemporaryDirectory() as place:
        found = [ttrl(place, "scale", *common, *words) for words in (answered, trained)]
    return {
        "points": [
            {
                "method": point["method"],
                "n": point["n"],
                "accuracy": point["accuracy"]["value"],
                **{name: point[name] for name in FIELDS},
            }
            for part in found
            for point in part["points"]
        ]
    }


def points_of(record: dict[str, Any], model: str) -> list[Point]:
    """Return the points of a model: a score for each seed, and tokens that are means over them."""
    seeds = [run["points"] for run in record["runs"][model].values()]
    return [
        Point(
            same[0]["method"],
            same[0]["n"],
            tuple(point["accuracy"] for point in same),
            **{name: fmean(point[name] for point in same) for name in FIELDS},
        )
        for same in zip(*seeds, strict=True)
    ]


def tables(record: dict[str, Any], model: str) -> list[TextTable]:
    """Make the tables of a model: its points, and what is best, also where nobody scores."""
    points = points_of(record, model)
    head = ("method", "n", "accuracy %", *FIELDS, "tokens")
    rows = [_row(p) for p in points if not p.method.startswith("training") or p.n in STEPS]
    alone = [point for point in points if point.method not in JUDGED]
    return [
        TextTable(
            f"{model}, {counted(record, model)}",
            head,
            tuple(rows),
            (f"{cost_note(FACTORS)}.",),
        ),
        budgets_table(points, telling(points), FACTORS, f"{model}: best within a budget"),
        budgets_table(alone, telling(alone), FACTORS, f"{model}: best without a reward model"),
    ]


def telling(points: Sequence[Point]) -> list[float]:
    """Return the budgets with which something else is best or next than with half of them."""
    found: dict[tuple[Point, ...], float] = {}
    for budget in budgets_of(points, FACTORS):
        found.setdefault(tuple(best_within(points, budget, FACTORS)[:2]), budget)
    return list(found.values())


def _row(point: Point) -> tuple[str, ...]:
    tokens = (point.sampled, point.read, point.trained, point.cost(FACTORS))
    return (
        point.method,
        str(point.n),
        spread([100 * score for score in point.scores]),
        *(f"{count:,.0f}" if count else "" for count in tokens),
    )


def curves_of(points: Sequence[Point]) -> list[Curve]:
    """Return a curve for each method, with the lowest and the highest of the seeds."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for point in points:
        bounds = min(point.scores), max(point.scores)
        found.setdefault(point.method, []).append(
            (point.cost(FACTORS), point.accuracy.value, *bounds)
        )
    return [Curve(name, tuple(sorted(some))) for name, some in found.items()]


def drawn(record: dict[str, Any]) -> str:
    """Draw the reader's curves."""
    title = f"The reader on {DATA}, with the lowest and the highest of the seeds"
    return scaling_svg(curves_of(points_of(record, "reader")), title, cost_note(FACTORS))


if __name__ == "__main__":
    main()
