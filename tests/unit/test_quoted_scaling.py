"""What docs/search.md and docs/reward_models.md say in figures is in bench/results/scaling.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ttrl.report.scaling_plot import scaling_svg
from ttrl.scaling import Factors, Point
from ttrl.scaling import report as reported

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
SAVED: dict[str, Any] = json.loads(
    (ROOT / "bench" / "results" / "scaling.json").read_text(encoding="utf-8")
)
FACTORS = Factors(**SAVED["factors"])
FIELDS = ("method", "n", "sampled", "read", "trained", "seconds")
POINTS = [
    Point(scores=tuple(p["scores"]), **{name: p[name] for name in FIELDS}) for p in SAVED["points"]
]
BUDGETS = [float(budget) for budget in SAVED["budgets"]]
TITLE = f"{SAVED['model']} on {SAVED['data']}"


def accuracy(method: str, n: int) -> float:
    (found,) = [p for p in POINTS if (p.method, p.n) == (method, n)]
    return round(100 * found.accuracy.value, 1)


def cost(method: str, n: int) -> float:
    (found,) = [p for p in POINTS if (p.method, p.n) == (method, n)]
    return found.cost(FACTORS)


def test_the_tables_are_those_of_the_json() -> None:
    points = reported.points_table(POINTS, FACTORS, TITLE).markdown()
    budgets = reported.budgets_table(POINTS, BUDGETS, FACTORS, "Best within a budget").markdown()
    assert points in PAGE
    assert budgets in PAGE


def test_the_plot_is_drawn_from_the_json() -> None:
    drawn = scaling_svg(reported.curves_of(POINTS, FACTORS), TITLE, reported.cost_note(FACTORS))
    assert (ROOT / "docs" / "images" / "scaling.svg").read_text(encoding="utf-8") == drawn


def test_accuracies_are_those_of_their_scores() -> None:
    for point, saved in zip(POINTS, SAVED["points"], strict=True):
        assert saved["accuracy"]["value"] == pytest.approx(point.accuracy.value)
        assert saved["cost"] == pytest.approx(point.cost(FACTORS))


def test_the_figures_of_tiny_prm_are_those_of_its_card() -> None:
    card = (ROOT / "ttrl" / "data" / "tiny_prm" / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "reward_models.md").read_text(encoding="utf-8")
    assert "taken for right | 100.0% |" in card and "it takes 100.0% of the right" in page
    assert "taken for wrong | 99.9% |" in card and "99.9% of the wrong" in page
    assert "4,096 answers" in card and "4,096 answers" in page


def test_what_is_said_in_words_is_in_the_points() -> None:
    said = " ".join(PAGE.partition("What they say:")[2].split())

    def both(method: str, n: int) -> str:
        return f"{accuracy(method, n)} % for {cost(method, n):,.0f}"

    for sentence in (
        f"`beam` has {both('beam', 4)} tokens and `dvts` {both('dvts', 8)}",
        f"`best-of-n` has {both('best-of-n', 8)}",
        f"needs {cost('best-of-n', 64):,.0f} for {accuracy('best-of-n', 64)} %",
        f"`beam` has {accuracy('beam', 4)} % with 4 and with 64",
        f"voting has {both('majority', 64)} tokens",
        f"Training has {accuracy('training, majority', 7)} % with a vote after 7 steps, for "
        f"{cost('training, majority', 7):,.0f}",
        f"have {accuracy('training', 56)} % after 56 steps, for {cost('training', 56):,.0f}",
        f"in {cost('training', 0):,.0f} tokens",
    ):
        assert sentence in said
    assert accuracy("beam", 64) == accuracy("beam", 4)
    assert max(accuracy("majority", n) for n in (1, 4, 8, 16, 64)) < 99.2
