"""What docs/few_questions.md says of runs is in the JSON of its two programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
from programs import ROOT, program

PAGE = (ROOT / "docs" / "few_questions.md").read_text(encoding="utf-8")


def runs(name: str) -> dict[str, dict[str, Any]]:
    text = (ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)["runs"]  # type: ignore[no-any-return]


ONE, STOPPING = runs("one_example"), runs("stopping")


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[ModuleType, ModuleType]]:
    """`bench/one_example.py` and `bench/stopping.py`."""
    with program("bench/one_example.py") as one_example, program("bench/stopping.py") as stopping:
        yield one_example, stopping


@pytest.mark.parametrize("which", [0, 1])
def test_a_table_has_the_figures_of_its_runs(
    which: int, bench: tuple[ModuleType, ModuleType]
) -> None:
    made = bench[which]
    _, found, rest = PAGE.partition(f"| {' | '.join(made.HEAD)} |\n|")
    assert found
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert cells == made.rows((ONE, STOPPING)[which])
    assert set((ONE, STOPPING)[which]) == set(made.RUNS)


def gains(name: str) -> list[float]:
    """By how many points each seed's training raised pass@1 of the others."""
    found = ONE[name].values()
    return [100 * (r["after"]["others"]["pass@1"] - r["before"]["others"]["pass@1"]) for r in found]


def test_what_is_said_of_one_question() -> None:
    budgets = {(r["answers"], r["updates"]) for by_seed in ONE.values() for r in by_seed.values()}
    assert budgets == {(12288, 24)}
    assert all(len(by_seed) == 5 for by_seed in ONE.values())
    half, variance = gains("1, share nearest one half"), gains("1, share varies most")
    everything, some = gains("128 questions"), gains("16, shares nearest one half")
    assert min(half + variance) > 0
    assert fmean(half) == pytest.approx(fmean(variance), abs=0.5)
    assert 2.7 < fmean(everything) / fmean(half) < 3.5
    assert fmean(some) > 0.75 * fmean(everything)
    assert fmean(gains("1, the first of the list")) < min(fmean(half), fmean(variance))


def test_what_is_said_of_stopping(bench: tuple[ModuleType, ModuleType]) -> None:
    found = {
        (name, seed): bench[1].figures(run)
        for name, by_seed in STOPPING.items()
        for seed, run in by_seed.items()
    }
    collapsed = [f for f in found.values() if f["collapsed"]]
    assert f"{len(collapsed)} of the {len(found)} runs collapsed" in PAGE
    assert all(f["outcome"].why and f["at_kept"] == f["before"] for f in collapsed)
    assert {f["outcome"].stop for f in collapsed} == {16, 24}
    healthy = [f for f in found.values() if f["at_last"] > f["before"]]
    lost = [100 * (f["at_best"] - f["at_kept"]) for f in healthy]
    assert f"lost {min(lost):.1f} to {max(lost):.1f} points" in PAGE
    assert sum(not f["outcome"].why for f in healthy) == 3
