"""Engines in processes of their own, against one in this process."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import children_of, open_files
from tiny_models import TOKENIZER, VOCABULARY, make_settings, saved, tiny_model

from ttrl.config import Settings
from ttrl.ranks import Ranks
from ttrl.rollout import remote_engine, shared_weights, wire
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.remote_engine import RemoteEngine, _environment, _visible_gpus
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.shared_weights import SharedWeights, read_weights
from ttrl.rollout.wire import Wire
from ttrl.types import Completion, FinishReason, Question, UserError

STOPS = list(range(10, 40))
QUESTIONS = [
    Question(f"q{i}", "unused", tuple(torch.randint(VOCABULARY, (length,), generator=rng).tolist()))
    for i, length in enumerate((1, 24, 3, 17, 9))
    for rng in [torch.Generator().manual_seed(i)]
]
PARAMS = SamplingParams(n=6, temperature=1.3, max_new_tokens=20, stream=(0, "rollout", 1))
LOGP_TOLERANCE = 1e-4  # other questions in the batch: the same sums in another order

Weights = dict[str, torch.Tensor]


class Source:
    """A policy, as far as the pool needs one."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.weights.items()


def weights_of(seed: int) -> Weights:
    return dict(tiny_model(seed=seed, eos_token_id=STOPS).named_parameters())


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    TOKENIZER.save_pretrained(folder)
    return saved(tiny_model(eos_token_id=STOPS), folder).path


def settings_of(path: str, engines: int = 0) -> Settings:
    """Engines in so many processes; 0: one in this process."""
    placement = {"placement": "separate", "engines": engines} if engines else {}
    rollout = {**placement, "batch_size": 12, "stuck_after_s": 60.0}
    return make_settings(model={"path": path}, rollout=rollout)


Pools = dict[int, RolloutPool]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Also in the engine processes: they compute at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def started(model_path: str) -> Iterator[Pools]:
    """By how many engine processes they have; starting them takes most of the time."""
    pools = {n: make_pool(settings_of(model_path, n), TOKENIZER) for n in (0, 1, 2)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture
def pools(started: Pools) -> Pools:
    """At the weights of seed 0, as they were at first."""
    for pool in started.values():
        pool.refresh(Source(weights_of(0)))
    return started


def processes(engine: Any) -> list[subprocess.Popen[bytes]]:
    return [p.process for p in engine._processes]


def completions(pool: RolloutPool, params: SamplingParams = PARAMS) -> list[tuple[Completion, ...]]:
    # What it knows of their lengths decides their order, and so the last bit of a sum.
    pool.load_state({"policy_version": pool.policy_version, "lengths": {}})
    return [group.completions for group in pool.sample(QUESTIONS, params)]


def tokens(groups: Sequence[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in group] for group in groups]


# ---------------------------------------------------------------------------------------------
# The same samples


def test_before_any_push_they_are_at_the_weights_of_the_model(started: Pools) -> None:
    """The first test, so that there was none."""
    assert [pool.policy_version for pool in started.values()] == [0, 0, 0]
    expected = tokens(completions(started[0]))
    assert tokens(completions(started[1])) == tokens(completions(started[2])) == expected


def test_one_engine_samples_the_same_bits_as_one_in_this_process(pools: Pools) -> None:
    assert isinstance(pools[1]._engine, RemoteEngine)
    expected = completions(pools[0])
    assert {c.finish_reason for group in expected for c in group} == set(FinishReason)
    assert completions(pools[1]) == expected
    params = replace(PARAMS, stream=(0, "exam"), top_p=0.8, first=3)
    assert completions(pools[1], params) == completions(pools[0], params) != expected


def test_two_engines_sample_the_same_apart_from_rounding(pools: Pools) -> None:
    expected, engine = completions(pools[0]), pools[2]._engine
    assert len({p.pid for p in processes(engine)} | {os.getpid()}) == 3
    completions(pools[2])
    for _ in range(2):  # the second time the lengths are known, and the shares others
        ours = [group.completions for group in pools[2].sample(QUESTIONS, PARAMS)]
        assert tokens(ours) == tokens(expected)
        for mine, theirs in zip(ours, expected, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=LOGP_TOLERANCE)
    assert pools[2].state()["lengths"] == {
        q.id: pytest.approx(sum(len(c.token_ids) for c in group) / PARAMS.n)
        for q, group in zip(QUESTIONS, expected, strict=True)
    }


def test_a_call_that_nobody_listens_to_does_not_disturb_the_next(pools: Pools) -> None:
    expected = completions(pools[2])
    more = replace(PARAMS, n=120, stream=("other",))
    listening: Any = pools[2]._engine.sample(QUESTIONS, more)
    assert len(next(listening)[1]) == 120
    begun = time.monotonic()
    listening.close()
    assert tokens(completions(pools[2])) == tokens(expected)
    took = time.monotonic() - begun
    begun = time.monotonic()
    completions(pools[2], more)
    assert took < time.monotonic() - begun, "it sampled to the end what nobody waited for"


# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("engines", [1, 2])
def test_a_push_reaches_every_engine(pools: Pools, engines: int) -> None:
    here, there = pools[0], pools[engines]
    seen = [tokens(completions(there))]
    for seed in (1, 2):
        for each in (here, there):
            each.refresh(Source(weights_of(seed)))
        seen.append(tokens(completions(there)))
        assert seen[-1] == tokens(completions(here))
        assert seen[-1] != seen[-2]
    there.sleep()
    there.refresh(Source(weights_of(1)))
    assert tokens(completions(there)) == seen[1]


def test_an_incomplete_push_is_refused_and_changes_no_engine(pools: Pools) -> None:
    expected, version = completions(pools[1]), pools[1].policy_version
    partial = weights_of(1)
    del partial["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"1 parameters missing: \['model\.norm\.weight'\]"):
        pools[1].refresh(Source(partial))
    assert completions(pools[1]) == expected
    assert pools[1].policy_version == version


def test_the_engine_process_checks_the_set_as_well(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = pools[1]._engine._weights.index  # type: ignore[attr-defined]
    head = index["lm_head.weight"]
    monkeypatch.setitem(index, "lm_head.weight", {**head, "shape": head["shape"][::-1]})
    with pytest.raises(RuntimeError, match=r"'lm_head\.weight' has the shape \[32, \d+\]"):
        pools[1].refresh(Source(weights_of(1)))
    monkeypatch.delitem(index, "lm_head.weight")
    with pytest.raises(RuntimeError, match=r"engine 1 of 1: weight push: 1 parameters missing"):
        pools[1].refresh(Source(weights_of(1)))


def test_samples_from_other_weights_than_the_last_push_are_refused(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = pools[1]._engine
    version = engine._version
    monkeypatch.setattr(engine, "_version", version + 1)
    with pytest.raises(RuntimeError, match=f"of push {version}, expected {version + 1}"):
        completions(pools[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shared_weights_are_what_was_written_and_belong_to_the_reader(dtype: str) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(1), "c": torch.randn(2, 2, 33)}
    shared = SharedWeights({n: t.shape for n, t in tensors.items()}, dtype)
    assert all(p["offset"] % shared_weights.ALIGNMENT == 0 for p in shared.index.values())
    for scale in (1, 2):
        shared.write((n, scale * t) for n, t in tensors.items())
        read = dict(read_weights(shared.descriptor, shared.index))
        assert list(read) == list(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(read[name], (scale * tensor).to(getattr(torch, dtype)))
    read["a"].zero_()
    again = dict(read_weights(shared.descriptor, shared.index))
    assert torch.equal(again["a"], (2 * tensors["a"]).to(getattr(torch, dtype)))
    shared.close()


def test_more_memory_than_there_is_is_never_asked_for() -> None:
    """Linux would not refuse it, but end processes until there is enough."""
    message = r"keeps a copy of the weights .* 4294967296\.0 GiB, but only \d+\.\d GiB are free"
    with pytest.raises(UserError, match=message):
        SharedWeights({"huge": torch.Size([2**30, 2**30])}, "float32")


# ---------------------------------------------------------------------------------------------
# What goes wrong


def test_what_the_engine_refuses_is_refused_here_and_it_goes_on(pools: Pools) -> None:
    with pytest.raises(UserError, match=r"'q1' has 24 tokens .* context is 128; lower"):
        completions(pools[1], replace(PARAMS, max_new_tokens=110))
    assert completions(pools[1]) == completions(pools[0])


def test_an_engine_that_cannot_start_says_why(model_path: str, tmp_path: Path) -> None:
    """The outline is there, so it is the process that finds no weights."""
    before = children_of(os.getpid())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(model_path) / name).read_bytes())
    with pytest.raises(UserError, match=r"cannot load model\.path = .*safetensors"):
        RemoteEngine(settings_of(str(tmp_path), 1), Ranks(), empty=False)
    assert children_of(os.getpid()) == before


def test_a_process_that_ends_at_once_is_reported_with_its_log(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children_of(os.getpid())
    monkeypatch.setattr(remote_engine, "MODULE", "no_such_module")
    with pytest.raises(UserError) as error:
        RemoteEngine(settings_of(model_path, 2), Ranks(), empty=False)
    first, *log = str(error.value).splitlines()
    assert first.startswith("rollout engine ")
    assert "ended with exit code 1 while it started; all engines were ended" in first
    assert "No module named no_such_module" in log[-1]
    assert children_of(os.getpid()) == before


Stubs = Callable[..., Any]


@pytest.fixture
def stubs(model_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubs]:
    """``stubs(2)``: an engine of two processes that do what prompts say; see ``stub_engine.py``."""
    monkeypatch.setattr(remote_engine, "MODULE", "stub_engine")
    made = []

    def _stubs(engines: int, stuck_after_s: float = 60.0) -> RemoteEngine:
        made.append(RemoteEngine(settings_of(model_path, engines), Ranks(), empty=True))
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
    every = processes(engine)
    with pytest.raises(UserError) as error:
        ask(engine, *prompts)
    assert None not in [p.poll() for p in every]
    assert stubs_left() == set()
    with pytest.raises(RuntimeError, match="the rollout engines were closed"):
        ask(engine, "7")
    return str(error.value)


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
    pid = processes(engine)[1].pid
    begun = time.monotonic()
    assert loss(engine, "hang 60", prompt) == (
        f"rollout engine 2 of 2 (process {pid}) {how} while it sampled; all engines were ended. "
        "It logged nothing"
    )
    assert time.monotonic() - begun < 10


def test_the_last_lines_of_its_log_are_shown(stubs: Stubs) -> None:
    _, *log = loss(stubs(1), "log 5000", "exit 1").splitlines()
    assert log == [f"    line {n}" for n in range(4980, 5000)]


@pytest.mark.parametrize("prompt", ["hang 60", "signal SIGSTOP"])
def test_an_engine_that_makes_no_progress_is_ended(stubs: Stubs, prompt: str) -> None:
    """Also one whose heart beats: "hang" says again and again that it has made no step."""
    engine = stubs(2, stuck_after_s=1.0)
    begun = time.monotonic()
    message = loss(engine, prompt, "decode 60")
    assert 1 < time.monotonic() - begun < 10
    assert message.startswith("rollout engine 1 of 2 ")
    assert "made no progress for 1 s (rollout.stuck_after_s: raise it if that can be)" in message


def test_a_slow_engine_that_makes_progress_is_not_stuck(stubs: Stubs) -> None:
    assert [i for i, _ in ask(stubs(1, stuck_after_s=1.0), "decode 3")] == [0]


def test_time_that_we_take_ourselves_is_not_the_engine_s(stubs: Stubs) -> None:
    engine = stubs(1, stuck_after_s=1.0)
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
    processes(engine)[0].terminate()
    processes(engine)[0].wait()
    with pytest.raises(UserError, match=r"engine 1 of 2 .* by SIGTERM while it went to sleep"):
        engine.sleep()


# ---------------------------------------------------------------------------------------------
# What is left when it ends


def test_closing_ends_the_processes_and_gives_the_memory_back(stubs: Stubs) -> None:
    before = set(os.listdir("/proc/self/fd"))
    engine = stubs(2)
    assert stubs_left() == {p.pid for p in processes(engine)}
    engine.close()
    engine.close()
    assert stubs_left() == set()
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_engine_that_is_forgotten_is_ended(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "MODULE", "stub_engine")
    engine = RemoteEngine(settings_of(model_path, 2), Ranks(), empty=True)
    assert len(stubs_left()) == 2
    del engine
    assert stubs_left() == set()


def test_nothing_listens_and_nothing_lies_in_a_file_system(started: Pools) -> None:
    """No port, no socket with a name, no file: nothing to connect to, and nothing to remove."""
    own = os.getpid(), processes(started[1]._engine)[0].pid
    links = [link for pid in own for link in open_files(pid)]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    assert len(inodes) >= 2  # both ends of the pair
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net", table)
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        assert not inodes & {row.split()[9] for row in rows}
    for row in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[6] in inodes:
            assert len(fields) == 7, f"a socket with a name: {fields[7]}"
    assert any(link.startswith("/memfd:ttrl-weights") for link in links)


# ---------------------------------------------------------------------------------------------
# The wire


def test_messages_arrive_whole_and_in_order_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    reader = Wire(theirs)
    text = '"line\nbreak" \\ü😀\udc80' * 50_000
    sent = [{"i": 1}, {"text": text}, {"x": [0.1, -1e-300, 2**60]}]
    threading.Thread(target=lambda: [Wire(ours).send(m) for m in sent]).start()
    received: list[wire.Message] = []
    while len(received) < 3:
        received += reader.read()
    assert received == sent
    ours.sendall(b'{"half": ')
    assert reader.read() == []
    ours.sendall(b'1}\n{"a": 2}\n{"b"')
    assert reader.read() == [{"half": 1}, {"a": 2}]
    ours.close()
    with pytest.raises(EOFError):
        reader.read()
    reader.close()


def test_completions_pass_the_wire_to_the_last_bit() -> None:
    sampled = Completion((1, 300), (-0.1, -1 / 3), "\\boxed{7}\n\udc80", FinishReason.LENGTH)
    ours, theirs = map(Wire, socket.socketpair())
    ours.send({"completion": wire.from_completion(sampled), "q": wire.from_question(QUESTIONS[3])})
    (message,) = theirs.read()
    assert wire.to_completion(message["completion"]) == sampled
    assert wire.to_question(message["q"]) == QUESTIONS[3]
    ours.close()
    theirs.close()


def test_a_reader_that_does_not_read_is_no_reason_to_wait_for_ever() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.2)
    with pytest.raises(TimeoutError):
        Wire(ours).send({"text": "x" * 10**7})
    theirs.close()


def test_nothing_is_pickled(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    pools[1].refresh(Source(weights_of(1)))
    assert len(completions(pools[1])) == len(QUESTIONS)
    monkeypatch.undo()
    rollout = Path(remote_engine.__file__).parent
    for name in ("remote_engine", "engine_process", "wire", "shared_weights"):
        tree = ast.parse((rollout / f"{name}.py").read_text(encoding="utf-8"))
        modules = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}  # type: ignore[union-attr]
        assert not modules & {"pickle", "marshal", "shelve", "multiprocessing", "cloudpickle"}


# ---------------------------------------------------------------------------------------------
# GPUs


def test_engines_get_gpus_by_the_names_that_this_process_sees_them_by() -> None:
    assert _visible_gpus((1, 3), 4, {}) == ["1", "3"]
    assert _visible_gpus((2, 0), 3, {"CUDA_VISIBLE_DEVICES": "4,5,GPU-8f"}) == ["GPU-8f", "4"]
    assert _visible_gpus((), 0, {"CUDA_VISIBLE_DEVICES": ""}) == []


@pytest.mark.parametrize(
    ("wanted", "count", "message"),
    [
        ((1,), 1, r"engine_gpus = \[1\], but torch finds 1 GPUs; expected numbers from 0 to 0"),
        ((0,), 0, r"engine_gpus = \[0\], but torch finds 0 GPUs; expected none on a CPU"),
        ((), 2, r"say which ones the engines get, for example rollout\.engine_gpus = \[1\]"),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    wanted: tuple[int, ...], count: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _visible_gpus(wanted, count, {})


def test_an_engine_sees_its_own_gpu_only_and_finds_what_we_import() -> None:
    environment = _environment("3", {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "HOME": "/h"})
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HOME"]) == ("3", "/h")
    assert environment["PYTHONPATH"].split(os.pathsep) == [p or os.getcwd() for p in sys.path]
    assert _environment(None, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == "0"
