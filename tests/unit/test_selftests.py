"""The self-tests of ``ttrl doctor`` that need a GPU, with stand-ins for it: what they say where all
is well, and that they find what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from python_process import run_python
from rich.console import Console
from torch.nn.functional import scaled_dot_product_attention

from ttrl.doctor import doctor, selftests
from ttrl.models import attention
from ttrl.types import Completion, CompletionGroup, Question, UserError, WeightSource

INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
from ttrl.doctor import selftests
from ttrl_kernels.rows import triton

selftests._require_gpu = lambda more: None
print(selftests.triton_rows())
right = triton.row_grad_
triton.row_grad_ = lambda *arguments: right(*arguments).mul_(1.01)
print(selftests.triton_rows())
"""


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the self-tests look."""
    monkeypatch.setattr(selftests, "_require_gpu", lambda more: None)


def test_without_a_gpu_nothing_fails_and_each_says_what_it_needs() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    needs = {}
    for name in ("Triton rows", "packed attention", "vLLM sleeps and wakes"):
        good, needs[name] = doctor._tried(selftests.SELF_TESTS[name])
        assert good and needs[name].startswith("not run, needs an NVIDIA GPU, ")
    assert "Python.h" in needs["Triton rows"]
    assert "nvcc only to install flash-attn" in needs["packed attention"]


def test_triton_rows() -> None:
    done = run_python("-c", INTERPRETED)
    assert done.stdout.count("gradients are PyTorch's to ") == 1, done.stderr
    assert "ArithmeticError: they differ from PyTorch's rows by 1.0e-02" in done.stderr


@pytest.mark.parametrize("lacking", ["gcc or clang", "Python.h"])
def test_triton_needs_a_compiler(
    lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_gpu: None
) -> None:
    monkeypatch.delenv("CC", raising=False)
    if lacking == "Python.h":
        monkeypatch.setenv("CC", "cc")
        monkeypatch.setattr(selftests.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=lacking):
        selftests.triton_rows()


def varlen(causal: bool) -> Any:
    """What a kernel for different lengths computes, one sequence after another."""

    def compute(q: Any, k: Any, v: Any, lengths: Any, scale: Any, window: Any) -> torch.Tensor:
        ends, key_ends, longest, longest_keys = lengths
        assert (longest, longest_keys) == (130, 130 if len(k) == len(q) else 200)
        assert (scale, window) == (None, (-1, 0))
        assert q.dtype == torch.bfloat16 and ends.dtype == key_ends.dtype == torch.int32
        parts = [x.split(e.diff().tolist()) for x, e in ((q, ends), (k, key_ends), (v, key_ends))]
        outs = []
        for one in zip(*parts, strict=True):
            queries, keys = len(one[0]), len(one[1])
            mask = torch.ones(queries, keys, dtype=torch.bool)
            mask = mask.tril(keys - queries) if causal else mask
            heads = (x.transpose(0, 1) for x in one)
            out = scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
            outs.append(out.transpose(0, 1))
        return torch.cat(outs)

    return compute


def test_packed_attention(monkeypatch: pytest.MonkeyPatch, on_gpu: None) -> None:
    monkeypatch.setattr(attention, "_has_varlen", lambda query: query.dtype == torch.bfloat16)
    monkeypatch.setattr(attention, "_varlen_attention", lambda: varlen(causal=True))
    said = selftests.packed_attention_on_gpu()
    assert said.startswith("forward and backward in bfloat16 are float32's to ")
    assert 1e-3 < float(said.split()[-1]) < 1e-2
    monkeypatch.setattr(attention, "_varlen_attention", lambda: varlen(causal=False))
    with pytest.raises(ArithmeticError, match="differs from padded attention"):
        selftests.packed_attention_on_gpu()


class SleepyPool:
    """A pool whose engine gives ``frees`` bytes back in its sleep, and may wake up wrong."""

    def __init__(self, frees: int, wrong: str | None) -> None:
        self.frees, self.wrong = frees, wrong
        self.calls: list[str] = []
        self.free = 2**30

    def push_weights(self, policy: WeightSource) -> None:
        self.calls.append("push_weights")
        self.free = 2**30

    def sample(self, questions: Sequence[Question], params: object) -> list[CompletionGroup]:
        self.calls.append("sample")
        tokens, logprobs = [7, 8, 9], [-0.5, -1.5, -2.5]
        if self.calls.count("sample") == 2 and self.wrong == "tokens":
            tokens[2] = 0
        if self.calls.count("sample") == 2 and self.wrong == "logprobs":
            logprobs[1] -= 0.5
        completion = Completion(tuple(tokens), tuple(logprobs), "", "length")
        return [CompletionGroup(questions[0], (completion,), 1)]

    def sleep(self) -> None:
        self.calls.append("sleep")
        self.free += self.frees

    def close(self) -> None:
        self.calls.append("close")


def sleepy(monkeypatch: pytest.MonkeyPatch, frees: int = 2**31, wrong: str | None = None) -> Any:
    pool = SleepyPool(frees, wrong)
    monkeypatch.setattr(selftests, "make_pool", lambda *arguments, **options: pool)
    monkeypatch.setattr(selftests, "require_vllm", lambda: "0.32.0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (pool.free, 2**34))
    return pool


def test_vllm_sleeps_and_wakes(monkeypatch: pytest.MonkeyPatch, on_gpu: None) -> None:
    pool = sleepy(monkeypatch)
    said = selftests.vllm_sleep_and_wake()
    assert said == "it gave 2.0 GiB back; the same tokens, log-probs to 0.0e+00"
    assert pool.calls == ["push_weights", "sample", "sleep", "push_weights", "sample", "close"]


@pytest.mark.parametrize(
    ("frees", "wrong", "message"),
    [
        (0, None, "gave no memory back"),
        (2**31, "tokens", "samples other tokens"),
        (2**31, "logprobs", "log-probs are off by 5.0e-01"),
    ],
)
def test_a_vllm_that_wakes_up_wrong(
    frees: int, wrong: str | None, message: str, monkeypatch: pytest.MonkeyPatch, on_gpu: None
) -> None:
    pool = sleepy(monkeypatch, frees, wrong)
    with pytest.raises(RuntimeError, match=message):
        selftests.vllm_sleep_and_wake()
    assert pool.calls[-1] == "close"


def test_a_vllm_that_no_run_could_use_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, on_gpu: None
) -> None:
    def missing() -> str:
        raise UserError("vLLM is not installed: bash scripts/setup.sh vllm")

    monkeypatch.setattr(selftests, "require_vllm", missing)
    good, said = doctor._tried(selftests.vllm_sleep_and_wake)
    assert good and said.startswith("not run, needs ") and "setup.sh vllm" in said


def test_the_doctor_fails_where_torch_sees_no_gpu_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "SELF_TESTS", {})
    console = Console(width=200)
    assert doctor.report(console)
    monkeypatch.setattr(doctor, "unseen_gpus", lambda: "this machine has a GPU")
    assert not doctor.report(console)
    assert "FAILED: this machine has a GPU" in capsys.readouterr().out
