"""Runs that sample from few tokens, and answers that end with a string."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compared_runs import differences
from rich.console import Console
from safetensors.numpy import load_file
from small_run import Run, interrupted
from step_lines import step_lines

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import TrainSample

FEW = [
    "rollout.temperature=1.5",
    "rollout.top_k=5",
    "rollout.top_p=0.95",
    "rollout.min_p=0.02",
    "loss.kl_coef=0.01",
]
QUIET = Display(Console(quiet=True))


def _mismatch(folder: Path, name: str) -> list[float]:
    """In each step's first update."""
    return [step[f"mismatch/{name}"] for step in step_lines(folder)]


def test_what_is_trained_is_what_was_sampled(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a replay, and a run that goes on, give the same bits."""
    whole = run("whole", [*FEW, "checkpoint.every=1"])
    assert step_lines(whole)[0]["mismatch/at_start"] < 1e-4
    assert max(_mismatch(whole, "max_log_ratio")) < 1e-4
    assert max(_mismatch(whole, "kl")) < 1e-8
    noted = load_file(whole / "rollouts" / "step_00002.safetensors")
    assert noted["top_counts"].shape == noted["token_ids"].shape
    assert {1, 2, 3} <= set(noted["top_counts"].tolist()) <= set(range(1, 6))

    settings = load_settings(str(whole / "config.toml"))
    train(settings, RunFolder(tmp_path / "again"), QUIET, whole / "rollouts")
    model = Path("model", "model.safetensors")
    assert (tmp_path / "again" / model).read_bytes() == (whole / model).read_bytes()
    left = interrupted(whole, tmp_path / "left", step=1)
    train(settings, RunFolder(left), QUIET, resume=True)
    assert differences(left, whole) == set()

    answer_of = TrainSample.of_answer
    monkeypatch.setattr(  # a learner that knows nothing of what was left out
        TrainSample, "of_answer", lambda *args: answer_of(*args[:7])
    )
    train(settings, RunFolder(tmp_path / "control"), QUIET, whole / "rollouts")
    assert min(_mismatch(tmp_path / "control", "max_log_ratio")) > 0.05
    assert min(_mismatch(tmp_path / "control", "kl")) > 1e-4
    assert (tmp_path / "control" / model).read_bytes() != (whole / model).read_bytes()


def test_answers_end_with_a_string(run: Run) -> None:
    """The embedded model writes sums step by step, each with a sign of equality."""
    folder = run("stop", ['rollout.stop=["=", "never"]', "data.held_out=none", "max_steps=1"])
    lines = (folder / "rollouts" / "step_00001.jsonl").read_text().splitlines()
    answers = [answer for line in lines for answer in json.loads(line)["completions"]]
    ended = [answer["text"] for answer in answers if "=" in answer["text"]]
    assert len(ended) > len(answers) / 2
    assert all(text.endswith("=") and text.count("=") == 1 for text in ended)
    assert all(a["finish_reason"] == "stop" for a in answers if "=" in a["text"])
