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
def test_the_tiny_task_runs_through_and_what_is_exported_is_measured(tmp_path: Path) -> None:
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
    steps = step_lines(run)
    assert [s["step"] for s in steps] == [1, 2, 3]
    # Sampler and trainer are the same model in every step, not only in the first.
    assert all(s["policy/sampler_max_gap"] < 1e-4 for s in steps)
    assert all(s["label/label_accuracy"] > 0.4 for s in steps)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["pass@1"] > 0.3
    (result,) = load_results(scores)
    assert result.mean("pass@1").value > 0.3


@pytest.mark.usefixtures("vllm_version")
def test_the_engine_is_at_the_weights_of_who_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the second step, when the agents' weights lie far apart."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling how tokens are ranked takes seconds
    own = (
        *SMALL,
        f"data.train={FEW / 'few_unlabelled.jsonl'}",  # nothing is measured
        "data.held_out=none",
        "max_steps=2",
        "optimizer.learning_rate=0.002",
        "rollout.workflow=debate",
        "rollout.agents=2",
        "rollout.rounds=2",
        "rollout.policies=per_agent",
        "policy.sequences_per_update=64",
        'agents.shown_as="{answer}\\n"',
        'agents.debate="{answers}{question}"',
    )
    settings = [f"--set={s}" for s in own]
    done = run_python(
        "-m", "ttrl.cli", "train", "tiny-arithmetic", *settings, "--run-dir", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr[-4000:]
    steps = step_lines(tmp_path / "run")
    assert len(steps) == 2
    for step in steps:
        assert step["policy/updates"] == step["agent_1/updates"] == 1
        assert step["policy/sampler_max_gap"] < 1e-4
        assert step["agent_1/sampler_max_gap"] < 1e-4
