"""A server whose engine is a vLLM in a process of its own: it answers, learns, ends and goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from served import Server, kept

pytest.importorskip("httpx", reason="pip install httpx")
pytest.importorskip("uvicorn", reason="pip install 'ttrl[serve]'")

SETTINGS = (
    "rollout.engine=vllm",
    "rollout.placement=separate",
    "rollout.kv_cache_gb=1",
    "rollout.questions_per_step=2",
    "rollout.votes=8",
    "rollout.max_new_tokens=48",
    "policy.trained_samples=8",
    "policy.sequences_per_update=16",
    "checkpoint.every=1",
    "threads=1",
    "report.every_s=0",
)


@pytest.mark.usefixtures("vllm_version")
def test_it_learns_and_goes_on_after_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling how tokens are ranked takes seconds
    run = tmp_path / "run"
    server = Server(run, *SETTINGS)
    try:
        told = [server.ask(a).json() for a in range(40, 46)]
        assert [x["votes"] for x in told] == [8] * 6
        deadline = time.monotonic() + 60
        while server.status()["updates"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.ask(50).json()["updates"] >= 2  # the model that answers has learned
        waiting = server.ask(60, wait="false").json()["number"]
        assert server.end(signal.SIGTERM) == 0
        assert "the same command goes on" in server.said.read_text()
        server.client.close()
        server = Server(run, *SETTINGS)
        assert server.ask(60).json()["number"] == waiting
        assert server.ask(40).json()["answer"] == told[0]["answer"]
        assert server.ask(70).json()["updates"] >= 2
        assert server.end(signal.SIGINT) == 0
    finally:
        server.client.close()
        server.process.kill()
        server.process.wait()
    assert [x["number"] for x in kept(run, "answers")] == list(range(1, 10))
