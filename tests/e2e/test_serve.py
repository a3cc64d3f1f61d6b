"""A server in a process of its own: it learns, is killed, and answers all when it runs again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import TOKEN, Server, kept
from small_run import SMALL

from ttrl.run.checkpoint import find_newest
from ttrl.run.run_folder import RunFolder

pytest.importorskip("httpx", reason="pip install httpx")
openai = pytest.importorskip("openai", reason="pip install openai")
pytest.importorskip("uvicorn", reason="pip install 'ttrl[serve]'")

SETTINGS = [
    *(s for s in SMALL if not s.startswith(("data.", "max_steps=", "epochs="))),
    "rollout.questions_per_step=2",
    "checkpoint.every=1",
]


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.client.close()
        server.process.kill()
        server.process.wait()


def test_a_server_learns_and_loses_nothing(tmp_path: Path, servers: list[Server]) -> None:
    run = tmp_path / "run"
    servers.append(server := Server(run, *SETTINGS))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0)
    said = client.chat.completions.create(
        model="tiny-stream",
        messages=[{"role": "user", "content": "What is 40 + 12?"}],
        extra_headers={"Idempotency-Key": "q40"},
    )
    first = server.ask(40).json()  # the same question by another way
    assert first["number"] == 1
    assert said.choices[0].message.content == first["response"]
    assert said.model_extra["ttrl"]["answer"] == first["answer"]
    answers = {f"q{a}": server.ask(a).json() for a in range(41, 50)}
    deadline = time.monotonic() + 60
    while server.status()["updates"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    later = server.ask(50).json()
    assert later["updates"] >= 2  # the model that answers has learned
    assert 0.0 <= later["held_s"] < 5.0
    # Killed while questions wait.
    pending = [{"prompt": f"What is {a} + 12?", "id": f"q{a}"} for a in (60, 61)]
    numbers = [server.client.post("/v1/questions?wait=false", json=x).json() for x in pending]
    server.end(signal.SIGKILL)
    before = kept(run, "answers")
    servers.append(server := Server(run, *SETTINGS))
    assert [server.ask(a).json()["number"] for a in (60, 61)] == [x["number"] for x in numbers]
    for name, answer in answers.items():  # what was told stays
        assert server.ask(int(name[1:])).json()["answer"] == answer["answer"]
    after = kept(run, "answers")
    assert after[: len(before)] == before
    assert [x["number"] for x in after] == list(range(1, 14))
    assert len({x["id"] for x in after}) == 13
    # Ended by SIGTERM it saves, and the same command goes on.
    done = server.ask(70).json()["step"]
    assert server.end(signal.SIGTERM) == 0
    assert "the same command goes on" in server.said.read_text()
    folder = RunFolder(run)
    newest, _ = find_newest(folder.checkpoints)
    assert newest is not None and newest.step >= done - 1
    assert (run / "model" / "model.safetensors").exists()
    assert not folder.is_finished()
    steps = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    numbered = [line["step"] for line in steps if line["step"]]
    assert numbered == list(range(1, len(numbered) + 1))
    assert all("serve/held_s" in line for line in steps if line["step"])


def test_a_push_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"serve.held_s = 1e-06: .* raise it"):
        Server(tmp_path / "run", *SETTINGS, "serve.held_s=1e-6")
