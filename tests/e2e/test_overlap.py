"""A run that samples the next step during this step's update."""

from __future__ import annotations

import json
from pathlib import Path

from compared_runs import differences
from rich.console import Console
from small_run import Run, interrupted
from step_lines import step_lines

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train

OPTIONS = (
    "max_steps=5",
    "checkpoint.every=2",
    "checkpoint.keep=3",
    "data.held_out=none",
    "optimizer.learning_rate=2e-3",
)
OVERLAP = ("rollout.placement=separate", "rollout.overlap=true")


def test_rollouts_are_one_update_behind_except_after_a_checkpoint(run: Run, tmp_path: Path) -> None:
    ahead = run("ahead", [*OPTIONS, *OVERLAP])
    after = run("after", OPTIONS)
    steps = step_lines(ahead)
    assert [s["rollout/updates_behind"] for s in steps] == [0, 1, 0, 1, 0]
    # How far the sampler is from the policy is seen, and is all of the difference.
    assert [s["mismatch/kl"] > 1e-5 for s in steps] == [False, True, False, True, False]
    assert all(s["mismatch/kl"] < 1e-9 for s in steps[::2])
    first, second = ("step_00001.jsonl", "step_00002.jsonl")
    assert (ahead / "rollouts" / first).read_bytes() == (after / "rollouts" / first).read_bytes()
    assert (ahead / "rollouts" / second).read_bytes() != (after / "rollouts" / second).read_bytes()
    versions = [
        json.loads((ahead / "rollouts" / f"step_0000{step}.jsonl").open().readline())[
            "policy_version"
        ]
        for step in range(1, 6)
    ]
    assert versions == [1, 1, 3, 3, 5]

    # No step is sampled ahead of a checkpoint, so a run that goes on samples the same.
    left = interrupted(ahead, tmp_path / "left", step=2)
    settings = load_settings(str(ahead / "config.toml"))
    train(settings, RunFolder(left), Display(Console(quiet=True)), resume=True)
    assert differences(ahead, left) == set()
