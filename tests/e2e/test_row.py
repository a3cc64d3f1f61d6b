"""``ttrl reproduce`` with real runs, as small as they can be; interrupted, and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_run import HERE, SMALL, interrupted

from ttrl.commands.reproduce import reproduce


def test_a_row_of_a_tiny_experiment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = (HERE / "few_held_out.jsonl").read_text().splitlines(keepends=True)
    trained, other = tmp_path / "four.jsonl", tmp_path / "other.jsonl"
    trained.write_text("".join((HERE / "few_train.jsonl").read_text().splitlines(True)[:4]))
    other.write_text("".join(lines[:2]))
    small = [f"data.train={trained}", "data.held_out=none", "checkpoint.every=1"]
    row = tmp_path / "row"
    sets = [*SMALL[2:], *small]
    reproduce("tiny-arithmetic", overrides=sets, run_dir=row, ood=[str(other)])
    assert "stage 4 of 4: measure" in capfd.readouterr().out
    found = json.loads((row / "result.json").read_text())
    ours, theirs = found["rows"]
    summary = json.loads((row / "ttrl" / "seed_0" / "summary.json").read_text())
    with_labels = json.loads((row / "labels" / "seed_0" / "summary.json").read_text())
    assert (ours["count"], theirs["count"]) == (4, 2)
    assert ours["before"]["value"] == summary["before"]["pass@1"]
    assert ours["votes"]["value"] == summary["before"]["maj@2"]
    assert ours["after"]["value"] == summary["after"]["pass@1"]
    assert ours["with_labels"]["value"] == with_labels["after"]["pass@1"]
    assert theirs["with_labels"] is None and theirs["votes"] is not None

    # As if it had been killed in the second step of the run: only that is made again.
    kept = {path: path.read_bytes() for path in (row / "labels").rglob("*") if path.is_file()}
    run = row / "ttrl" / "seed_0"
    interrupted(run, tmp_path / "copy", step=1)
    shutil.rmtree(run)
    shutil.move(tmp_path / "copy", run)
    reproduce("tiny-arithmetic", overrides=sets, run_dir=row, ood=[str(other)])
    out = capfd.readouterr().out
    assert (
        "resuming from step 1" in out and "stage 2 of 4: train with the labels, seed 0: done" in out
    )
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads((row / "result.json").read_text()) == found
