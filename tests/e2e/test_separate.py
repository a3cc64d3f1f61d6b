"""Runs whose engines are processes of their own, against the same run in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import Run
from step_lines import step_lines


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """Of each step, without those that say how long it took."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
        for line in step_lines(folder)
    ]


def _weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def _scores(folder: Path) -> tuple[Any, ...]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary["before"], summary["after"], summary["held_out"]


@pytest.mark.usefixtures("cold_starts")
def test_where_the_engine_runs_changes_no_bit(run: Run, small: Path) -> None:
    there = run("there", ["seed=3", "rollout.placement=separate"])
    assert _weights(there) == _weights(small)
    assert _metrics(there) == _metrics(small)
    assert _scores(there) == _scores(small)


def test_two_engines_train_as_well(run: Run, small: Path) -> None:
    """Other batches, other rounding: one in a million random draws may fall on another token."""
    two = run("two", ["seed=3", "rollout.placement=separate", "rollout.engines=2"])
    for ours, theirs in zip(_metrics(two), _metrics(small), strict=True):
        assert ours["policy/tokens"] == pytest.approx(theirs["policy/tokens"], rel=0.02)
        assert ours["policy/entropy"] == pytest.approx(theirs["policy/entropy"], rel=0.02)
        assert ours["label/label_accuracy"] == theirs["label/label_accuracy"]
        assert ours["policy/sampler_max_gap"] < 1  # the second update of a step is off-policy
