"""Starting the processes of a run; what a process learns from its launcher. Imports no torch."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ttrl.system.gpus import refuse_unseen_gpus

LAUNCHER = "TTRL_LAUNCHER"
"""Variable that names the process that `launch` is in, for the ranks."""
STAGE = "TTRL_STAGE"
"""Variable that is set for a run that `ttrl reproduce` makes."""


def keep_segments_whole() -> None:
    """Have torch grow its segments of a GPU's memory, unless the user asked for anything else.

    Of segments of fixed sizes, what stays pins many that it does not fill: a reference model that
    was cut into shares tensor by tensor, for one. Torch reads it when CUDA starts.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # an older name of the same
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def launched() -> bool:
    """Say whether torchrun, or the deepspeed launcher, started this process as one of a group."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def is_main() -> bool:
    """Say whether this process talks to the user."""
    return not launched() or os.environ["RANK"] == "0"


def command() -> str:
    """Return how this program is called from here."""
    script = Path(sys.executable).with_name("ttrl")
    found = shutil.which("ttrl")
    if not script.exists() or (found is not None and Path(found).samefile(script)):
        return "ttrl"
    return os.path.relpath(script)


def gpu_count() -> int:
    """Count the GPUs that this process sees; a UserError if there are some, and torch sees none."""
    import torch

    refuse_unseen_gpus()
    return torch.cuda.device_count()


def launch(ranks: int, arguments: Sequence[str]) -> NoReturn:
    """Start ``ttrl`` with these arguments ``ranks`` times on this machine, and end as it does.

    The rendezvous listens on this machine only.
    """
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    os.environ[LAUNCHER] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable()  # a rank says itself what was wrong, in one line
    try:
        torchrun(["--standalone", f"--nproc_per_node={ranks}", "-m", "ttrl.cli", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.strsignal(-failure.exitcode) or f"signal {-failure.exitcode}"
            print(f"ttrl: error: rank {rank} was ended: {name}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)


def end_with_launcher() -> None:
    """End a rank that `launch` started when that process is killed."""
    if LAUNCHER in os.environ:
        end_with_parent()
        if os.getppid() != int(os.environ[LAUNCHER]):  # it was killed before
            os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends.

    Whoever is stopped, or hangs, would not notice.
    """
    set_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
    if ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
