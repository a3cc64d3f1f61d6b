"""Training on recorded rollouts is training on the rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from small_run import Run
from step_lines import step_lines

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

QUIET = Display(Console(quiet=True))


def test_replayed_training_gives_the_same_weights(run: Run, tmp_path: Path) -> None:
    recorded = run("recorded", ["rollout.stop_when_decided=true"])
    settings = load_settings(str(recorded / "config.toml"))
    summary = train(settings, RunFolder(tmp_path / "again"), QUIET, recorded / "rollouts")
    assert summary["before"] == summary["held_out"]["after"] == {}  # nothing was sampled
    for name in ("model/model.safetensors", "rollouts/step_00002.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (recorded / name).read_bytes()
    before, after = (step_lines(folder) for folder in (recorded, tmp_path / "again"))
    sampled = ("eval/", "mismatch/at_start")  # by an engine, of which a replay has none
    for ours, theirs in zip(after, before, strict=True):
        same = {k: v for k, v in theirs.items() if not k.startswith(("time/", "memory/", *sampled))}
        assert {k: v for k, v in ours.items() if not k.startswith(("time/", "memory/"))} == same


def test_what_was_not_recorded_is_refused(tmp_path: Path) -> None:
    settings = load_settings("tiny-arithmetic", overrides=["reward.labels=teacher"])
    with pytest.raises(UserError, match="a teacher's answers are not recorded"):
        train(settings, RunFolder(tmp_path / "run"), QUIET, tmp_path)
    with pytest.raises(UserError, match="there is no step_00001"):
        train(load_settings("tiny-arithmetic"), RunFolder(tmp_path / "run"), QUIET, tmp_path)
    assert not (tmp_path / "run").exists()
