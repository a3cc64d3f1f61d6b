"""Engines in processes of their own, against one in this process."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import cpu_seconds, open_files, processes_of
from tiny_models import STOPS, TOKENIZER, engine_settings, tiny_model, tiny_questions

from ttrl.report.rollouts import RecordedAnswer
from ttrl.rollout.engines import remote_engine
from ttrl.rollout.engines.remote_engine import RemoteEngine, _environment, _visible_gpus
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import ConfidenceFloor, SamplingParams
from ttrl.selection.scores import tokens_of
from ttrl.selection.stopping import GroupConfidences
from ttrl.settings import ModelSettings
from ttrl.types import Completion, FinishReason, UserError

QUESTIONS = tiny_questions(1, 24, 3, 17, 9)
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


Pools = dict[int, RolloutPool]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Also in the engine processes: they compute at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def open_before() -> set[str]:
    """What this process has open already: what other tests have left is not the pools'."""
    return set(open_files(os.getpid()))


@pytest.fixture(scope="module")
def started(saved_model: ModelSettings, open_before: set[str]) -> Iterator[Pools]:
    """By how many engine processes they have; starting them takes most of the time."""
    pools = {n: make_pool(engine_settings(saved_model, n), TOKENIZER) for n in (0, 1, 2)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture
def pools(started: Pools) -> Pools:
    """At the weights of seed 0, as they were at first."""
    for pool in started.values():
        pool.push_weights(Source(weights_of(0)))
    return started


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
    assert {c.finish_reason for group in expected for c in group} == {
        FinishReason.STOP,
        FinishReason.LENGTH,
    }
    assert completions(pools[1]) == expected
    params = replace(PARAMS, stream=(0, "exam"), top_p=0.8, first=3)
    assert completions(pools[1], params) == completions(pools[0], params) != expected
    params = replace(params, top_k=7, min_p=0.01, top_logprobs=9)
    noted = completions(pools[1], params)
    assert noted == completions(pools[0], params)
    assert all(c.top_logprobs is not None for group in noted for c in group)


def test_what_is_broken_off_is_the_same_in_processes(pools: Pools) -> None:
    """At half of the lowest groups of four tokens."""
    noted = replace(PARAMS, top_logprobs=3)
    whole = pools[0].sample(QUESTIONS, noted)
    lowest = [
        [GroupConfidences(tokens_of(RecordedAnswer.of(c)), 4).lowest for c in g.completions]
        for g in whole
    ]
    least = {q.id: sorted(of)[3] - 0.01 for q, of in zip(QUESTIONS, lowest, strict=True)}
    params = replace(noted, floor=ConfidenceFloor(4, least))
    found = [
        [
            [(c.token_ids, c.finish_reason) for c in g.completions]
            for g in pool.sample(QUESTIONS, params)
        ]
        for pool in pools.values()
    ]
    assert found[0] == found[1] == found[2]
    reasons = [reason for of in found[0] for _, reason in of]
    assert reasons.count(FinishReason.UNSURE) >= len(QUESTIONS)


def test_two_engines_sample_the_same_apart_from_rounding(pools: Pools) -> None:
    expected, engine = completions(pools[0]), pools[2]._engine
    assert len({p.pid for p in processes_of(engine)} | {os.getpid()}) == 3
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
    computed = [_computed(pools[2])]
    listening.close()
    assert tokens(completions(pools[2])) == tokens(expected)
    computed.append(_computed(pools[2]))
    completions(pools[2], more)
    computed.append(_computed(pools[2]))
    took, whole = computed[1] - computed[0], computed[2] - computed[1]
    assert took < whole, "it sampled to the end what nobody waited for"


def _computed(pool: RolloutPool) -> float:
    """CPU seconds of all engine processes so far."""
    return sum(cpu_seconds(process.pid) for process in processes_of(pool._engine))


# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("engines", [1, 2])
def test_a_push_reaches_every_engine(pools: Pools, engines: int) -> None:
    here, there = pools[0], pools[engines]
    seen = [tokens(completions(there))]
    for seed in (1, 2):
        for each in (here, there):
            each.push_weights(Source(weights_of(seed)))
        seen.append(tokens(completions(there)))
        assert seen[-1] == tokens(completions(here))
        assert seen[-1] != seen[-2]
    there.sleep()
    there.push_weights(Source(weights_of(1)))
    assert tokens(completions(there)) == seen[1]


def test_an_incomplete_push_is_refused_and_changes_no_engine(pools: Pools) -> None:
    expected, version = completions(pools[1]), pools[1].policy_version
    partial = weights_of(1)
    del partial["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"1 parameters missing: \['model\.norm\.weight'\]"):
        pools[1].push_weights(Source(partial))
    assert completions(pools[1]) == expected
    assert pools[1].policy_version == version


def test_the_engine_process_checks_the_set_as_well(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = pools[1]._engine._weights.index  # type: ignore[attr-defined]
    head = index["lm_head.weight"]
    monkeypatch.setitem(index, "lm_head.weight", {**head, "shape": head["shape"][::-1]})
    with pytest.raises(RuntimeError, match=r"'lm_head\.weight' has the shape \[32, \d+\]"):
        pools[1].push_weights(Source(weights_of(1)))
    monkeypatch.delitem(index, "lm_head.weight")
    with pytest.raises(RuntimeError, match=r"engine 1 of 1: weight push: 1 parameters missing"):
        pools[1].push_weights(Source(weights_of(1)))


def test_samples_from_other_weights_than_the_last_push_are_refused(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = pools[1]._engine
    version = engine._version
    monkeypatch.setattr(engine, "_version", version + 1)
    with pytest.raises(RuntimeError, match=f"of push {version}, expected {version + 1}"):
        completions(pools[1])


# ---------------------------------------------------------------------------------------------
# What is refused, and what is not there


def test_what_the_engine_refuses_is_refused_here_and_it_goes_on(pools: Pools) -> None:
    with pytest.raises(UserError, match=r"'q1' has 24 tokens .* context is 128; lower"):
        completions(pools[1], replace(PARAMS, max_new_tokens=110))
    assert completions(pools[1]) == completions(pools[0])


def test_nothing_listens_and_nothing_lies_in_a_file_system(
    started: Pools, open_before: set[str]
) -> None:
    """No port, no socket with a name, no file: nothing to connect to, and nothing to remove."""
    own = os.getpid(), processes_of(started[1]._engine)[0].pid
    links = {link for pid in own for link in open_files(pid)} - open_before
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


def test_nothing_is_pickled(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    pools[1].push_weights(Source(weights_of(1)))
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
