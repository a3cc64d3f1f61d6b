"""Python in another process, or in several that are the ranks of one run."""

from __future__ import annotations

import os
import subprocess
import sys

LIMIT_S = 600
"""Longer than anything here takes; what hangs is an error."""


def run_python(
    *arguments: str, ranks: int | None = None, gpus: bool = False
) -> subprocess.CompletedProcess[str]:
    """What Python does with these arguments, once it has ended, in whatever way.

    Args:
        arguments: of Python.
        ranks: start it so many times, under torchrun; None: once, and without.
        gpus: let it have this machine's, as runs in this process do, which it may be compared with.
    """
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
    return subprocess.run(
        [sys.executable, *(torchrun if ranks is not None else ()), *arguments],
        env=_environment(ranks, gpus),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def _environment(ranks: int | None, gpus: bool) -> dict[str, str]:
    environment = {
        **os.environ,
        # It finds what we find: ttrl, and the helpers in the folders that pytest has added.
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    # vLLM and torch take their number of threads from here: a process alone is to be told by its
    # settings only, while ranks, as under torchrun by default, have one thread each; even a single
    # one, so that it adds up as several do.
    environment.pop("OMP_NUM_THREADS", None)
    if ranks is not None:
        environment["OMP_NUM_THREADS"] = "1"
    if not gpus:  # the same numbers on every machine, and ranks that need no GPU each
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
