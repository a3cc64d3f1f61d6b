"""Runs of a benchmark are made once, whatever becomes of the others, and kept at once."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from programs import program
from rich.console import Console
from ttrl_kernels import chosen_backend


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    """`bench/kept_runs.py`."""
    with program("bench/kept_runs.py") as found:
        yield found


def test_what_is_there_is_not_made_again_and_a_failure_stops_no_other(
    bench: ModuleType, tmp_path: Path
) -> None:
    path, screen = tmp_path / "runs.json", io.StringIO()
    first = bench.KeptRuns(path, {"common": ["a=1"]})
    first.add(("votes", 0), {"kept": True})
    first.write()
    kept = bench.KeptRuns(path, {"common": ["a=1"]})
    wanted = {
        ("votes", 0): ['{"kept": false}'],  # is there
        ("votes", 1): ["{"],  # no JSON
        ("reader", "votes", 1): ['{"made": 1}'],
    }
    for key, run in kept.made(json.loads, wanted, 1, Console(file=screen, width=200)):
        assert not kept.has(key)
        kept.add(key, run)
        kept.write(areas={"votes": 0.5})
        assert kept.has(key)
    assert screen.getvalue().startswith("votes, seed 1 failed: JSONDecodeError(")
    found = json.loads(path.read_text())
    assert found["runs"] == {
        "votes": {"0": {"kept": True}},
        "reader": {"votes": {"1": {"made": 1}}},
    }
    assert (found["common"], found["areas"]) == (["a=1"], {"votes": 0.5})
    assert found["machine"]["python"] == sys.version.split()[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert found["machine"]["rows"] == chosen_backend(device)
    assert found["machine"]["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_runs_of_other_settings_are_not_mixed(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    settings = {"settings": {"one": (["a=1"], "half", 1)}}  # as JSON has it: with lists
    bench.KeptRuns(path, settings).write()
    assert bench.KeptRuns(path, settings).record["runs"] == {}
    with pytest.raises(SystemExit, match="made with other settings: remove it first"):
        bench.KeptRuns(path, {"settings": {"one": (["a=2"], "half", 1)}})
    with pytest.raises(SystemExit, match="made with other settings"):
        bench.KeptRuns(path, {**settings, "questions": 6})


def test_runs_of_other_rows_are_not_mixed(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in the last bit, and in what is sampled from some step on: no record is both."""
    path, quiet = tmp_path / "runs.json", Console(quiet=True)
    monkeypatch.setattr("machine.rows", lambda: "native")
    first = bench.KeptRuns(path, {})
    first.add(("votes", 0), {"made": 0})
    first.write()
    monkeypatch.setattr(bench, "rows", lambda: "torch")
    there, missing = {("votes", 0): ["{}"]}, {("votes", 1): ["{}"]}
    assert list(bench.KeptRuns(path, {}).made(json.loads, there, 1, quiet)) == []
    with pytest.raises(SystemExit, match="made with the row operations 'native', and those of "):
        list(bench.KeptRuns(path, {}).made(json.loads, missing, 1, quiet))
    monkeypatch.setattr(bench, "rows", lambda: "native")
    made = bench.KeptRuns(path, {}).made(json.loads, missing, 1, quiet)
    assert list(made) == [(("votes", 1), {})]


def test_a_mean_stands_with_the_lowest_and_the_highest(bench: ModuleType) -> None:
    assert bench.spread([1.0, 2.0, 6.04]) == "3.0 (1.0 to 6.0)"
    assert bench.spread([0.0381, 0.0391], between="-", digits=3) == "0.039 (0.038-0.039)"
    assert (bench.spread([2.04]), bench.spread([])) == ("2.0", "")


def test_seeds_are_counted(bench: ModuleType) -> None:
    runs = {"runs": {"votes": {"0": {}}, "reader": {"0": {}, "1": {}}}}
    assert [bench.counted(runs, name) for name in ("votes", "reader")] == ["1 seed", "2 seeds"]


def test_runs_are_kept_and_reported_one_by_one(bench: ModuleType, tmp_path: Path) -> None:
    path, screen = tmp_path / "runs.json", io.StringIO()
    kept = bench.KeptRuns(path, {})
    wanted = {("votes", 0): ['{"made": 0}'], ("votes", 1): ["{"]}
    kept.complete(json.loads, wanted, 1, Console(file=screen, width=200))
    assert json.loads(path.read_text())["runs"] == {"votes": {"0": {"made": 0}}}
    assert "votes, seed 0: done\n" in screen.getvalue()
    assert "votes, seed 1 failed" in screen.getvalue()
