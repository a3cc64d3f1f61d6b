"""What docs/self_posed.md says of runs that began without questions is in the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import fmean
from types import ModuleType

import pytest
from programs import ROOT, program

PAGE = (ROOT / "docs" / "self_posed.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "bench/results/self_posed.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """`bench/self_posed.py`."""
    with program("bench/self_posed.py") as found:
        yield found


def test_the_tables_are_those_of_the_runs(bench: ModuleType) -> None:
    found = [bench.gains(RECORD), bench.shares(RECORD)]
    heads = ("held-out pass@1 in %", "share in %")
    for head, rows in zip(heads, found, strict=True):
        _, _, rest = PAGE.partition(f"| {' | '.join([head, *RECORD['runs']])} |\n")
        lines = rest.partition("\n\n")[0].splitlines()[1:]
        assert [[c.strip() for c in line.strip("|").split("|")] for line in lines] == rows


def test_the_sentences_are_those_of_the_runs(bench: ModuleType) -> None:
    runs = RECORD["runs"]
    gains = {name: bench.gained(of) for name, of in runs.items()}
    assert {len(of) for of in gains.values()} == {5}
    mean = {name: fmean(of) for name, of in gains.items()}
    light = gains["light proposer"]

    def share(curve: str, *, first: bool) -> float:
        return fmean(bench.part(runs["light proposer"], curve, first=first))

    valid, both = "posed/valid_share", "posed/distinct_share"
    only = mean["solver only"]
    said = [
        f"rises by {fmean(light):.1f} points, on every seed by {min(light):.1f} or more.",
        f"from {share(valid, first=True):.1f} % to {share(valid, first=False):.1f} %",
        f"from {share(both, first=True):.1f} % to {share(both, first=False):.1f} %",
        f"is worth {mean['light proposer'] - only:.1f} points over training the solver only "
        f"({only:.1f}), less than the seeds differ.",
        f"With a weight of 1 the gain is {mean['votes']:.1f}, and smaller on sums of every length.",
        f"add {mean['light proposer, checker'] - mean['light proposer']:.1f} points.",
    ]
    text = " ".join(PAGE.split())
    assert [words for words in said if words not in text] == []
    assert mean["light proposer"] - only < max(light) - min(light)
    for level in bench.LEVELS:
        one, tenth = (
            fmean(run["after"][f"pass@1/level={level}"] for run in runs[name].values())
            for name in ("votes", "light proposer")
        )
        assert one < tenth


def test_the_page_names_all_figures() -> None:
    named = ("proposals", "tokens", "valid_share", "distinct_share", "asked", "trained")
    for name in (*named, "kept_share", "mean_share", "reward", "buffer"):
        assert f"`posed/{name}`" in PAGE
