"""Engine processes that come to grief, and what is left of them; most are ``stub_engine.py``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children_of, processes_of
from tiny_models import engine_settings

from ttrl.rollout.engines import remote_engine
from ttrl.rollout.engines.remote_engine import RemoteEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import ModelSettings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, Question, UserError

Stubs = Callable[..., Any]


@pytest.fixture
def stubs(saved_model: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubs]:
    """``stubs(2)``: an engine of two processes that do what prompts say; see ``stub_engine.py``."""
    monkeypatch.setattr(remote_engine, "MODULE", "stub_engine")
    made = []

    def _stubs(engines: int, stuck_after_s: float = 60.0) -> RemoteEngine:
        made.append(
            RemoteEngine(engine_settings(saved_model, engines), Ranks(), load_weights=False)
        )
        made[-1]._stuck_after_s = stuck_after_s
        return made[-1]

    yield _stubs
    for engine in made:
        engine.close()


def stubs_left() -> set[int]:
    return children_of(os.getpid(), "stub_engine")


def ask(engine: RemoteEngine, *prompts: str) -> list[tuple[int, tuple[Completion, ...]]]:
    questions = [Question(f"q{i}", prompt, (1,)) for i, prompt in enumerate(prompts)]
    return list(engine.sample(questions, SamplingParams(2, 1.0, 4)))


def loss(engine: RemoteEngine, *prompts: str) -> str:
    """What the engine says about the one that is lost, all of whose processes are ended."""
    every = processes_of(engine)
    with pytest.raises(UserError) as error:
        ask(engine, *prompts)
    assert None not in [p.poll() for p in every]
    assert stubs_left() == set()
    with pytest.raises(RuntimeError, match="the rollout engines were closed"):
        ask(engine, "7")
    return str(error.value)


# ---------------------------------------------------------------------------------------------
# What goes wrong


def test_an_engine_that_cannot_start_says_why(saved_model: ModelSettings, tmp_path: Path) -> None:
    """The outline is there, so it is the process that finds no weights."""
    before = children_of(os.getpid())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(saved_model.path) / name).read_bytes())
    with pytest.raises(UserError, match=r"cannot load model\.path = .*safetensors"):
        RemoteEngine(
            engine_settings(ModelSettings(path=str(tmp_path)), 1), Ranks(), load_weights=True
        )
    assert children_of(os.getpid()) == before


def test_an_engine_that_hangs_up_and_lives_on_is_ended(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "END_S", 0.5)
    assert "hung up while it sampled; all engines were ended" in loss(stubs(2), "7", "hangup")


def test_a_process_that_ends_at_once_is_reported_with_its_log(
    saved_model: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children_of(os.getpid())
    monkeypatch.setattr(remote_engine, "MODULE", "no_such_module")
    with pytest.raises(UserError) as error:
        RemoteEngine(engine_settings(saved_model, 2), Ranks(), load_weights=True)
    first, *log = str(error.value).splitlines()
    assert first.startswith("rollout engine ")
    assert "ended with exit code 1 while it started; all engines were ended" in first
    assert "No module named no_such_module" in log[-1]
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize(
    ("prompt", "how"),
    [
        ("signal SIGKILL", "was ended by SIGKILL (often for want of memory)"),
        ("signal SIGTERM", "was ended by SIGTERM"),
        ("exit 3", "ended with exit code 3"),
        ("exit 0", "ended with exit code 0"),
    ],
)
def test_an_engine_that_dies_is_named_and_the_others_are_ended(
    stubs: Stubs, prompt: str, how: str
) -> None:
    engine = stubs(2)
    pid = processes_of(engine)[1].pid
    begun = time.monotonic()
    assert loss(engine, "hang 60", prompt) == (
        f"rollout engine 2 of 2 (process {pid}) {how} while it sampled; all engines were ended. "
        "It logged nothing"
    )
    assert time.monotonic() - begun < 40  # the other one hangs for 60 s


def test_the_last_lines_of_its_log_are_shown(stubs: Stubs) -> None:
    _, *log = loss(stubs(1), "log 5000", "exit 1").splitlines()
    assert log == [f"    line {n}" for n in range(4980, 5000)]


@pytest.mark.parametrize("prompt", ["hang 60", "signal SIGSTOP"])
def test_an_engine_that_makes_no_progress_is_ended(stubs: Stubs, prompt: str) -> None:
    """Also one whose heart beats: "hang" says again and again that it has made no step."""
    engine = stubs(2, stuck_after_s=1.0)
    begun = time.monotonic()
    message = loss(engine, prompt, "decode 60")
    assert 1 < time.monotonic() - begun < 40  # what it was asked for takes 60 s
    assert message.startswith("rollout engine 1 of 2 ")
    assert "made no progress for 1 s (rollout.stuck_after_s: raise it if that can be)" in message


def test_a_slow_engine_that_makes_progress_is_not_stuck(stubs: Stubs) -> None:
    assert [i for i, _ in ask(stubs(1, stuck_after_s=2.0), "decode 3")] == [0]


def test_time_that_we_take_ourselves_is_not_the_engine_s(stubs: Stubs) -> None:
    engine = stubs(1, stuck_after_s=1.4)
    questions = [Question(p, p, (1,)) for p in ("7", "decode 0.5", "8")]
    answers = []
    for _, completions in engine.sample(questions, SamplingParams(2, 1.0, 4)):
        answers.append(completions[0].text)
        time.sleep(1.5)
    assert answers == ["7 0", "decode 0.5 0", "8 0"]


def test_a_stopped_engine_that_takes_no_request_is_ended(stubs: Stubs) -> None:
    """It fills the socket, so that sending has to wait."""
    engine = stubs(1)
    for process in engine._processes:
        process.wire._socket.settimeout(1.0)
        process.process.send_signal(signal.SIGSTOP)
    message = loss(engine, "x" * 10**7)
    assert "made no progress for 1 s" in message


def test_an_engine_that_died_while_it_was_idle_is_noticed_at_the_next_call(stubs: Stubs) -> None:
    engine = stubs(2)
    processes_of(engine)[0].terminate()
    processes_of(engine)[0].wait()
    with pytest.raises(UserError, match=r"engine 1 of 2 .* by SIGTERM while it went to sleep"):
        engine.sleep()


# ---------------------------------------------------------------------------------------------
# What is left when it ends


def test_closing_ends_the_processes_and_gives_the_memory_back(stubs: Stubs) -> None:
    before = set(os.listdir("/proc/self/fd"))
    engine = stubs(2)
    assert stubs_left() == {p.pid for p in processes_of(engine)}
    engine.close()
    engine.close()
    assert stubs_left() == set()
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_engine_that_is_forgotten_is_ended(
    saved_model: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "MODULE", "stub_engine")
    engine = RemoteEngine(engine_settings(saved_model, 2), Ranks(), load_weights=False)
    assert len(stubs_left()) == 2
    del engine
    assert stubs_left() == set()
