"""Runs of PPO and PRIME: killed and continued bit for bit, and what they write down."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from compared_runs import differences
from python_process import run_python
from rich.console import Console
from safetensors.torch import load_file
from small_run import SMALL, interrupted
from step_lines import step_lines

from ttrl.build import Parts
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.run.stateful import Stateful
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train

KILLED_RUN = str(Path(__file__).with_name("killed_run.py"))

RUNS = {
    "ppo": (
        "algorithm=ppo",
        "critic.learning_rate=1e-3",
        "reward.kl_coef=0.05",
        "reward.kl_target=0.001",
        "reward.kl_horizon=50.0",
    ),
    "prime": ("algorithm=prime", "prime.learning_rate=1e-4"),
}

MODEL = {"ppo": "critic", "prime": "prm"}
"""What each trains besides the policy."""


def overrides(algorithm: str) -> list[str]:
    """Four steps, saved after every second one."""
    return [*SMALL, *RUNS[algorithm], "max_steps=4", "checkpoint.every=2", "evaluation.samples=1"]


def run(folder: Path, algorithm: str, *, resume: bool = False) -> None:
    """Train in this process."""
    settings = load_settings("tiny-arithmetic", overrides=overrides(algorithm))
    display = Display(Console(file=io.StringIO()))
    train(settings, RunFolder(folder), display, resume=resume)


@pytest.fixture(scope="module", params=RUNS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(algorithm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end, for whoever only reads it."""
    folder = tmp_path_factory.mktemp(algorithm) / "whole"
    run(folder, algorithm)
    return folder


def test_killed_and_continued_it_is_the_run_that_was_not(
    algorithm: str, whole: Path, tmp_path: Path
) -> None:
    metrics = step_lines(whole)
    arguments = (str(tmp_path / "killed"), "3", *overrides(algorithm))
    done = run_python(KILLED_RUN, *arguments)
    assert done.returncode == -9, done.stderr
    run(tmp_path / "killed", algorithm, resume=True)
    assert differences(whole, tmp_path / "killed") == set()

    model = MODEL[algorithm]
    assert all(m[f"{model}/updates"] == 2 for m in metrics)
    assert len({m[f"{model}/loss"] for m in metrics}) == 4
    if algorithm == "ppo":
        assert len({m["reward/kl_coef"] for m in metrics}) == 4
    shards = load_file(whole / "checkpoints/step_00004/rank_00000.safetensors")
    kinds = {name.rsplit("/", 1)[0] for name in shards}
    own = {f"{model}/{kind}" for kind in ("weights", "exp_avg", "exp_avg_sq")}
    assert own <= kinds


def test_a_run_that_forgets_its_second_model_differs(
    algorithm: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the comparison above would notice."""
    left = interrupted(whole, tmp_path / "left", step=2)
    real, model = Parts.stateful, MODEL[algorithm]

    def forgetful(parts: Parts) -> dict[str, Stateful]:
        return {name: part for name, part in real(parts).items() if name != model}

    monkeypatch.setattr(Parts, "stateful", forgetful)
    run(left, algorithm, resume=True)
    assert "model" in differences(whole, left)
