"""Starting the processes of a run; what a process learns from its launcher. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def launched() -> bool:
    """Whether torchrun, or the deepspeed launcher, started this process as one of a group."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def is_main() -> bool:
    """Whether this process talks to the user."""
    return not launched() or os.environ["RANK"] == "0"


def gpu_count() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


def launch(ranks: int, arguments: Sequence[str]) -> NoReturn:
    """Become torchrun, which starts ``ttrl`` with these arguments so many times on this machine.

    Its rendezvous listens on this machine only.
    """
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *torchrun, "-m", "ttrl.cli", *arguments]
    os.execv(sys.executable, command)
