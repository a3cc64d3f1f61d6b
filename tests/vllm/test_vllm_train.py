"""Runs from end to end that sample with vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from python_process import run_python
from step_lines import step_lines

from ttrl.report.results import load_results

FEW = Path(__file__).parents[1] / "e2e"
SMALL = (
    f"data.train={FEW / 'few_train.jsonl'}",
    f"data.held_out={FEW / 'few_held_out.jsonl'}",
    "rollout.engine=vllm",
    "rollout.kv_cache_gb=1",
    "max_steps=3",
    "rollout.questions_per_step=8",
    "rollout.votes=16",
    "policy.trained_samples=16",
    "policy.sequences_per_update=128",  # one update per step: all samples are on-policy
    "evaluation.samples=4",
    "threads=1",
)


@pytest.mark.usefixtures("vllm_version")
def test_the_tiny_task_runs_through_and_what_is_exported_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``ttrl export`` writes is what vLLM loads."""
    settings = [f"--set={s}" for s in SMALL]
    run, model, scores = tmp_path / "run", tmp_path / "model", tmp_path / "scores.json"
    for command in (
        ("train", "tiny-arithmetic", *settings, "--run-dir", str(run)),
        ("export", str(run), str(model)),
        (
            *("eval", str(model), str(FEW / "few_train.jsonl")),
            *("--recipe", str(run / "config.toml"), "--json", str(scores)),
        ),
    ):
        done = run_python("-m", "ttrl.cli", *command)
        assert done.returncode == 0, done.stderr[-4000:]
        # The run compiles how tokens are ranked, as a user's does; doing it again takes seconds.
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    steps = step_lines(run)
    assert [s["step"] for s in steps] == [1, 2, 3]
    # Sampler and trainer are the same model in every step, not only in the first.
    assert all(s["policy/sampler_max_gap"] < 1e-4 for s in steps)
    assert all(s["label/label_accuracy"] > 0.4 for s in steps)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["pass@1"] > 0.3
    (result,) = load_results(scores)
    assert result.mean("pass@1").value > 0.3
