"""What ``ttrl export`` writes is what vLLM loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from python_process import run_python

from ttrl.report.results import load_results

SMALL = (
    "max_steps=1",
    "data.held_out=none",
    "rollout.votes=4",
    "policy.trained_samples=4",
    "policy.sequences_per_update=64",
    "evaluation.samples=2",
    "threads=1",
)


@pytest.mark.usefixtures("vllm_version")
def test_an_exported_checkpoint_is_measured_with_vllm(tmp_path: Path) -> None:
    run, model, scores = tmp_path / "run", tmp_path / "model", tmp_path / "scores.json"
    settings = [f"--set={s}" for s in SMALL]
    ttrl = ("-m", "ttrl.cli")
    for command in (
        ("train", "tiny-arithmetic", *settings, "--run-dir", str(run)),
        ("export", str(run), str(model)),
        (
            *("eval", str(model), "arithmetic:train", "--recipe", str(run / "config.toml")),
            *("--set=rollout.engine=vllm", "--set=rollout.kv_cache_gb=1", "--json", str(scores)),
        ),
    ):
        done = run_python(*ttrl, *command)
        assert done.returncode == 0, done.stderr[-4000:]
    (result,) = load_results(scores)
    assert result.mean("pass@1").value > 0.3
