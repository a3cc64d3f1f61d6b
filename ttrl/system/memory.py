"""Memory of a process, as metrics: names that begin with ``memory/`` differ from run to run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ttrl.types import UserError

GIB = 2**30


def memory_metrics(phase: str) -> dict[str, float]:
    """Measure what is held at a phase's end, and was at its peak, in GiB; begin a new peak.

    - ``memory/PHASE_host``: resident memory of this process;
    - ``memory/PHASE_gpu``: the GPU's memory in use, by whatever process and allocator;
    - ``memory/PHASE_gpu_peak``: the most that torch's allocator held at once in this phase, without
      what a vLLM that sleeps at its end has given back.
    """
    metrics = {}
    if (host := _resident_bytes()) is not None:
        metrics[f"memory/{phase}_host"] = host / GIB
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        metrics[f"memory/{phase}_gpu"] = (total - free) / GIB
        peak = torch.cuda.max_memory_allocated() - _asleep_bytes()
        metrics[f"memory/{phase}_gpu_peak"] = peak / GIB
        torch.cuda.reset_peak_memory_stats()
    return metrics


@contextmanager
def memory_suffices(when: str, remedy: str) -> Iterator[None]:
    """Say what to change where a GPU's memory does not suffice.

    Args:
        when: completes "out of GPU memory …".
        remedy: completes "…: ".

    Raises:
        UserError: for torch's own error, and for that of vLLM's allocator, a plain RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        free, total = (x / GIB for x in torch.cuda.mem_get_info())
        raise UserError(
            f"out of GPU memory {when} ({free:.1f} of {total:.1f} GiB free): {remedy}; ttrl plan "
            "shows what takes how much"
        ) from error


def pin(memory: torch.Tensor) -> Callable[[], None]:
    """Let a GPU copy into this memory of the host and out of it directly; return what ends that.

    Where pages may be swapped out, the driver copies through a small buffer of its own, which takes
    several times as long. Without a GPU nothing happens. torch, when it pins memory, rounds its
    size up to a power of two; this is exact.

    Raises:
        UserError: if so much memory cannot be pinned.
    """
    if not torch.cuda.is_available():
        return lambda: None
    runtime, address, size = torch.cuda.cudart(), memory.data_ptr(), memory.nbytes
    try:
        torch.cuda.check_error(runtime.cudaHostRegister(address, size, 0))
    except RuntimeError as error:
        raise UserError(
            f"cannot pin {size / GIB:.1f} GiB of the host's memory: {error}; ttrl plan shows how "
            "much of it a run needs (see also: ulimit -l)"
        ) from error
    return lambda: torch.cuda.check_error(runtime.cudaHostUnregister(address))


def _asleep_bytes() -> int:
    """Count what a sleeping vLLM has given back, and torch counts as allocated all the same.

    Its allocator unmaps the memory of blocks that stay where they are.
    """
    module = sys.modules.get("vllm.device_allocator.cumem")
    allocator = None if module is None else module.CuMemAllocator.instance
    if allocator is None:  # no vLLM, or one that cannot sleep
        return 0
    return sum(data.handle[1] for data in allocator.pointer_to_data.values() if data.is_asleep)


def _resident_bytes() -> int | None:
    """Return this process's resident bytes; None where the system does not say (it is no Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
