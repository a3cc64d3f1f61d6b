"""docs/search.md: tables, plot and words are in the JSON of `bench/scaling.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from programs import ROOT, program

from ttrl.scaling import Factors, Point, best_within

PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
RECORD: dict[str, Any] = json.loads(
    (ROOT / "bench" / "results" / "scaling.json").read_text(encoding="utf-8")
)
FACTORS = Factors()


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """`bench/scaling.py`."""
    with program("bench/scaling.py") as found:
        yield found


@pytest.fixture(scope="module")
def points(bench: ModuleType) -> dict[str, dict[tuple[str, int], Point]]:
    """By model, method and n."""
    return {
        model: {(p.method, p.n): p for p in bench.points_of(RECORD, model)}
        for model in RECORD["runs"]
    }


Points = dict[str, dict[tuple[str, int], Point]]


def accuracy(point: Point) -> float:
    return 100 * point.accuracy.value


def test_the_tables_are_those_of_the_json(bench: ModuleType) -> None:
    every = [table for model in RECORD["runs"] for table in bench.tables(RECORD, model)]
    assert bench.marked(bench.NAME, every) in PAGE


def test_the_plot_is_drawn_from_the_json(bench: ModuleType) -> None:
    assert bench.PLOT.read_text(encoding="utf-8") == bench.drawn(RECORD)


def test_both_models_have_the_same_seeds_and_methods(bench: ModuleType, points: Points) -> None:
    assert set(RECORD["runs"]) == set(bench.MODELS)
    seeds = [set(runs) for runs in RECORD["runs"].values()]
    assert seeds[0] == seeds[1]
    assert set(points["reader"]) == set(points["tiny-base"])
    assert len(next(iter(points["reader"].values())).scores) == len(seeds[0])


def test_a_row_has_the_mean_of_the_seeds_and_their_bounds(bench: ModuleType) -> None:
    runs = {
        str(seed): {
            "points": [
                {"method": "majority", "n": 4, "accuracy": right, "sampled": sampled}
                | {"read": 0.0, "trained": 0.0}
            ]
        }
        for seed, (right, sampled) in enumerate([(0.5, 100.0), (0.75, 104.0)])
    }
    record = {"runs": {"m": runs}}
    (row,) = bench.tables(record, "m")[0].rows
    assert row == ("majority", "4", "62.5 (50.0 to 75.0)", "102", "", "", "102")
    (curve,) = bench.curves_of(bench.points_of(record, "m"))
    assert curve.points == ((102.0, 0.625, 0.5, 0.75),)


def test_the_figures_of_tiny_prm_are_those_of_its_card() -> None:
    card = (ROOT / "ttrl" / "data" / "tiny_prm" / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "reward_models.md").read_text(encoding="utf-8")
    assert "taken for right | 100.0% |" in card and "it takes 100.0% of the right" in page
    assert "taken for wrong | 99.9% |" in card and "99.9% of the wrong" in page
    assert "4,096 answers" in card and "4,096 answers" in page


def test_what_is_said_in_words_is_in_the_points(points: Points) -> None:
    """See the list below the tables."""
    for found in points.values():
        judged = found["beam", 4], found["dvts", 8]
        assert min(map(accuracy, judged)) > 95 > accuracy(found["best-of-n", 8])
        assert max(p.cost(FACTORS) for p in (found["beam", 4], found["dvts", 8])) < 500
        assert accuracy(found["beam", 64]) - accuracy(found["beam", 4]) < 3
        assert found["training, majority", 7].cost(FACTORS) < 8000
        assert f"{found['majority', 1].cost(FACTORS):.0f}" == "38"
        assert found["best-of-n", 8].cost(FACTORS) == pytest.approx(610, abs=5)
        assert accuracy(found["training, majority", 7]) > accuracy(found["majority", 64])
        without = [
            best_within(some, 4096, FACTORS)[0].method
            for some in [[p for (m, _), p in found.items() if m in ALONE]]
        ]
        assert without == ["majority"]
    reader, shipped = points["reader"], points["tiny-base"]
    assert max(accuracy(shipped[m, n]) for m in AGENTS for n in (4, 8, 16, 64)) <= 0.2
    for n in (4, 8, 16, 64):
        for method in AGENTS:
            assert accuracy(reader[method, n]) < accuracy(reader["majority", n])
            more = reader[method, n].cost(FACTORS) / reader["majority", n].cost(FACTORS)
            assert 1.8 < more < 2.5
    for method in AGENTS:
        assert accuracy(reader[method, 8]) < accuracy(reader[method, 4])


AGENTS = ("debate 2x2", "mixture 3+1")
ALONE = ("majority", *AGENTS, "training", "training, majority")
