"""What ``ttrl scale`` shows: tables, JSON, and the curves of its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ttrl.report.scaling_plot import Curve
from ttrl.report.tables import TextTable
from ttrl.scaling.points import Factors, Point, best_within

COLUMNS = ("method", "n", "accuracy %", "±", "sampled", "read", "trained", "tokens", "seconds")
COST = "tokens per question: sampled + {read:g} read + {trained:g} trained"


def cost_note(factors: Factors) -> str:
    """Say what is counted."""
    return COST.format(**asdict(factors))


def points_table(points: Sequence[Point], factors: Factors, title: str) -> TextTable:
    """Return the table of all points."""
    note = (
        f"{cost_note(factors)}. read: tokens that the reward model was shown, or agents in later "
        "turns; trained: tokens of updates. n of training: steps, whose tokens and seconds all "
        "questions share; of agents: answers of all turns. ±: half of the 95 % interval over "
        "questions."
    )
    return TextTable(title, COLUMNS, tuple(_row(p, factors) for p in points), (note,))


def _row(point: Point, factors: Factors) -> tuple[str, ...]:
    mean = point.accuracy
    half = "" if mean.half_width is None else f"{100 * mean.half_width:.1f}"
    tokens = (point.sampled, point.read, point.trained, point.cost(factors))
    return (
        point.method,
        str(point.n),
        f"{100 * mean.value:.1f}",
        half,
        *(f"{count:,.0f}" if count else "" for count in tokens),
        f"{point.seconds:.2f}",
    )


def budgets_table(
    points: Sequence[Point], budgets: Sequence[float], factors: Factors, title: str
) -> TextTable:
    """Return the table of budgets, with the best method within each and the next one."""
    rows = []
    for budget in budgets:
        best = best_within(points, budget, factors)
        cells = [_named(point, factors) for point in best[:2]]
        rows.append((f"{budget:,.0f}", *cells, *[""] * (2 - len(cells))))
    return TextTable(title, ("tokens per question", "best", "next"), tuple(rows))


def _named(point: Point, factors: Factors) -> str:
    cost = f"{point.cost(factors):,.0f} tokens"
    return f"{point.method} {point.n}: {100 * point.accuracy.value:.1f} % ({cost})"


def curves_of(points: Sequence[Point], factors: Factors) -> list[Curve]:
    """Return a curve for each method, from cheap to dear."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for point in points:
        mean = point.accuracy
        half = mean.half_width or 0.0
        bounds = max(0.0, mean.value - half), min(1.0, mean.value + half)
        found.setdefault(point.method, []).append((point.cost(factors), mean.value, *bounds))
    return [Curve(name, tuple(sorted(some))) for name, some in found.items()]


def scale_json(
    points: Sequence[Point],
    budgets: Sequence[float],
    factors: Factors,
    about: Mapping[str, Any],
) -> str:
    """Return all of it as JSON."""
    best = {
        f"{budget:g}": [
            {"method": p.method, "n": p.n, "accuracy": p.accuracy.value, "cost": p.cost(factors)}
            for p in best_within(points, budget, factors)
        ]
        for budget in budgets
    }
    found = {
        **about,
        "factors": asdict(factors),
        "points": [point.as_json(factors) for point in points],
        "budgets": best,
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"
