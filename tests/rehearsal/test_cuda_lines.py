"""Which statements only a GPU runs, and that each is rehearsed or stands here with its reason."""

from __future__ import annotations

from pathlib import Path

import cuda_lines
import pytest
from rehearsed import Both

TRITON_ROWS = "kernels/ttrl_kernels/rows/triton.py"
REFUSED = "the error is made in tests/kernels/test_triton_rows.py"
LIGER = "liger-kernel is not installed for the tests"
PROCESS = "for engines in processes of their own, where nothing is pretended"
VLLM = "for vLLM: tests/unit/test_vllm_cycle.py goes there with a scripted one"

NOT_REHEARSED = {
    f"{TRITON_ROWS}: row_grad_: raise": REFUSED,
    f"{TRITON_ROWS}: _check: raise": REFUSED,
    "kernels/ttrl_kernels/rows/__init__.py: _triton_state: return AVAILABLE": (
        "TRITON_INTERPRET answers before: tests/kernels/test_triton_interpreted.py"
    ),
    "kernels/ttrl_kernels/rows/native.py: _check: if": "C++ rows are not chosen for a GPU",
    "ttrl/system/gpus.py: _reason: torch.cuda.init()": "a GPU unseen by torch: test_gpus.py",
    "ttrl/system/launch.py: gpu_count: return": "what the command line starts: test_gpus.py",
    "ttrl/system/memory.py: memory_suffices: free, total": VLLM,
    "ttrl/system/memory.py: _asleep_bytes: return sum(": VLLM,
    "ttrl/system/memory.py: pin: raise": "memory that cannot be pinned: test_wire.py",
    "ttrl/run/planned.py: planned_memory: note(": "what cannot be planned: test_plan.py",
    "ttrl/run/planned.py: planned_memory: return {}": "what cannot be planned: test_plan.py",
    "ttrl/run/preflight.py: refuse_impossible: if settings.memory": "there is a GPU in a rehearsal",
    "ttrl/settings/rules.py: _memory_rules: yield 'memory.off": "what it refuses: test_config.py",
    "ttrl/run/preflight.py: refuse_impossible: raise UserError('memory.offload_during": (
        "it refuses because there is no GPU"
    ),
    "ttrl/models/attention.py: _varlen_attention: raise": "a broken flash-attn: test_attention.py",
    "ttrl/models/packed_model.py: use_liger: ": LIGER,
    "ttrl/learner/offload.py: host_like: return torch.empty_like": "no GPU's: test_offload.py",
    "ttrl/rollout/engines/engine_process.py: Host._start: ": PROCESS,
    "ttrl/rollout/engines/remote_engine.py: RemoteEngine.__init__: gpus =": PROCESS,
    "ttrl/rollout/engines/vllm_engine.py: ": VLLM,
    "ttrl/doctor/selftests.py: vllm_sleep_and_wake: ": VLLM,
}
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
