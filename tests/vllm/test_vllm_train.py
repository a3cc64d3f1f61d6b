"""Runs from end to end that sample with vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from python_process import run_python
from step_lines import step_lines
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ttrl.models.pretrained import TINY_BASE

SMALL = (
    "rollout.engine=vllm",
    "rollout.kv_cache_gb=1",
    "max_steps=3",
    "rollout.votes=16",
    "policy.trained_samples=16",
    "policy.sequences_per_update=256",  # one update per step: all samples are on-policy
    "evaluation.samples=2",
    "threads=1",
)


@pytest.mark.usefixtures("vllm_version")
def test_the_tiny_task_runs_through(tmp_path: Path) -> None:
    settings = [f"--set={s}" for s in SMALL]
    folder = tmp_path / "run"
    done = run_python(
        "-m", "ttrl.cli", "train", "tiny-arithmetic", *settings, "--run-dir", str(folder)
    )
    assert done.returncode == 0, done.stderr[-4000:]
    steps = step_lines(folder)
    assert [s["step"] for s in steps] == [1, 2, 3]
    # Sampler and trainer are the same model in every step, not only in the first.
    assert all(s["policy/sampler_max_gap"] < 1e-4 for s in steps)
    assert all(s["label/label_accuracy"] > 0.4 for s in steps)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"]["pass@1"] > 0.3


@pytest.mark.usefixtures("vllm_version")
def test_a_model_that_it_cannot_compute_is_refused(tmp_path: Path) -> None:
    """Heads of 24 numbers, which vLLM loads, and fails on at the first token."""
    config = AutoConfig.from_pretrained(TINY_BASE)
    config.hidden_size = 96
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(TINY_BASE).save_pretrained(tmp_path / "model")
    settings = [f"--set={s}" for s in (f"model.path={tmp_path / 'model'}", *SMALL)]
    folder = tmp_path / "run"
    done = run_python(
        "-m", "ttrl.cli", "train", "tiny-arithmetic", *settings, "--run-dir", str(folder)
    )
    assert done.returncode == 2
    assert "cannot compute this model here" in done.stderr
    assert 'set rollout.engine = "transformers"' in done.stderr
    assert not folder.exists()
