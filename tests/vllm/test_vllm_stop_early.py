"""`ttrl eval --stop-early` with vLLM: one engine, one on each of two ranks, one that both share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from python_process import run_python

from ttrl.report.results import load_results

PAIRS = ((12, 34), (47, 85), (659, 747), (8, 1))
SAMPLES = 12
SETTINGS = (
    "threads=1", f"evaluation.samples={SAMPLES}", "evaluation.greedy=false", "evaluation.top_p=1.0",
    "selection.window=6", "selection.warm_up=4", "selection.warm_up_keep=0.6",
    "selection.consensus=1.0", "rollout.engine=vllm", "rollout.kv_cache_gb=1",
)  # fmt: skip


def test_ranks_break_off_the_same_answers(
    vllm_version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank decides by what its own engine says; if two that share one disagreed, they hang."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    data = tmp_path / "q.jsonl"
    rows = [{"id": f"{a}", "prompt": f"What is {a} + {b}?", "answer": f"{a + b}"} for a, b in PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["-m", "ttrl.cli", "eval", "tiny-base", str(data), "--recipe", "tiny-arithmetic"]
    command += ["--select", "deepconf", "--stop-early", *sets]
    found = []
    shared = ("--ranks", "2", "--set", "rollout.tensor_parallel=2")
    for number, ranks in enumerate(((), ("--ranks", "2"), shared)):
        output = tmp_path / f"{number}.json"
        done = run_python(*command, *ranks, "--json", str(output))
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(load_results(output)[0].questions)
    assert found[0] == found[1] == found[2]
    begun = [question.scores["answers"] for question in found[0]]
    assert 4 <= min(begun) < max(begun) == SAMPLES
