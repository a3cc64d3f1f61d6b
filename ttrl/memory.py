"""What a process holds, as metrics: names that begin with ``memory/`` differ from run to run."""

from __future__ import annotations

from pathlib import Path

import torch

GIB = 2**30


def memory_metrics(phase: str) -> dict[str, float]:
    """What is held at the end of a phase, and was at its peak, in GiB; begins a new peak.

    - ``memory/PHASE_host``: resident memory of this process;
    - ``memory/PHASE_gpu``: the GPU's memory in use, by whatever process and allocator;
    - ``memory/PHASE_gpu_peak``: the most that torch's allocator held at once in this phase.
    """
    metrics = {}
    if (host := _resident_bytes()) is not None:
        metrics[f"memory/{phase}_host"] = host / GIB
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        metrics[f"memory/{phase}_gpu"] = (total - free) / GIB
        metrics[f"memory/{phase}_gpu_peak"] = torch.cuda.max_memory_allocated() / GIB
        torch.cuda.reset_peak_memory_stats()
    return metrics


def _resident_bytes() -> int | None:
    """Of this process; None where the system does not say (it is no Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
