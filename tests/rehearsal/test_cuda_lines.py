"""Which statements only a GPU runs, and that each is rehearsed or stands here with its reason."""

from __future__ import annotations

from pathlib import Path

import cuda_lines
import pytest
from conftest import Both

FUSED_ADAM = "DeepSpeed's FusedAdam is compiled by nvcc"
INPUT = "an error about input that tests/kernels/test_triton_rows.py makes"
INTERPRETER = "rows are chosen before this line where TRITON_INTERPRET is set"
LIGER = "Liger's kernels are Triton's, but use what its interpreter lacks"
PROCESS = "runs in an engine's own process, where nothing is pretended"
REFUSAL = "an error about settings or packages that tests/unit makes"
RANKS = "what the command line starts ranks by: it is one line"
VLLM = "the real vLLM for CUDA cannot be imported without it"

NOT_REHEARSED: dict[str, str] = {}
"""Beginnings of keys of `cuda_lines.Unit`, each with the reason."""

SOURCE = """
import torch

def plain(x):
    return helper(x)

def helper(x):
    if x.is_cuda:
        a = 1
        only(a)
    elif x.device.type != "cpu":
        b = 1
    else:
        c = 1

def only(a):
    return a

def early():
    if not torch.cuda.is_available():
        return None
    d = 1
    return d

def mixed(on_cpu, x):
    e = 1 if on_cpu else 2
    if x and not on_cpu:
        f = 1
    if x or not on_cpu:
        g = 1
    torch.cuda.empty_cache()

def is_there(x) -> bool:
    return x.is_cuda and x.dtype

def indirect(x):
    if is_there(x):
        for i in x:
            h = i
"""


@pytest.fixture
def units(tmp_path: Path) -> list[cuda_lines.Unit]:
    (tmp_path / "ttrl").mkdir()
    (tmp_path / "ttrl" / "a.py").write_text(SOURCE, encoding="utf-8")
    return cuda_lines.find(tmp_path)


def test_statements_of_cuda_are_found(units: list[cuda_lines.Unit]) -> None:
    certain = [u.key.removeprefix("ttrl/a.py: ") for u in units if u.certain]
    assert certain == [
        "helper: a = 1",
        "helper: only(a)",
        "helper: b = 1",
        "only: return a",
        "early: d = 1",
        "early: return d",
        "mixed: f = 1",
        "indirect: for i in x:",
        "indirect: h = i",
    ]
    asking = [u.key.removeprefix("ttrl/a.py: ") for u in units if not u.certain]
    assert asking == [
        "helper: if x.is_cuda:",
        "helper: if x.device.type != 'cpu':",
        "early: if not torch.cuda.is_available():",
        "mixed: e = 1 if on_cpu else 2",
        "mixed: if x and (not on_cpu):",
        "mixed: if x or not on_cpu:",
        "mixed: torch.cuda.empty_cache()",
        "is_there: return x.is_cuda and x.dtype",
        "indirect: if is_there(x):",
    ]


def test_each_is_rehearsed_or_has_a_reason(both: Both) -> None:
    units = cuda_lines.find()
    reached = set(both.gpu.facts["reached"])
    missed = [u.key for u in units if u.key not in reached]
    listed = {key: [k for k in missed if k.startswith(key)] for key in NOT_REHEARSED}
    unlisted = [k for k in missed if not any(k.startswith(key) for key in NOT_REHEARSED)]
    idle = [key for key, found in listed.items() if not found]
    print(f"{len(units)} statements are CUDA's, {sum(u.certain for u in units)} run on no CPU")
    print(f"{len(units) - len(missed)} are rehearsed, {len(missed)} have a reason not to be")
    assert not unlisted, "neither rehearsed nor in NOT_REHEARSED:\n" + "\n".join(unlisted)
    assert not idle, "in NOT_REHEARSED, but rehearsed or gone:\n" + "\n".join(idle)
    partly = [k for k in reached for key in NOT_REHEARSED if k.startswith(key)]
    assert not partly, "in NOT_REHEARSED, but rehearsed:\n" + "\n".join(partly)
