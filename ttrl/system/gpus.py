"""The NVIDIA GPUs of this machine, and what is wrong where torch sees none of them.

Imports no torch: the command line starts without it.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
from typing import TYPE_CHECKING

from ttrl.types import UserError

if TYPE_CHECKING:
    import torch

NODES = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*")
"""Files that the driver makes for each GPU."""

OLDEST_DRIVER = {12: 525, 13: 580}
"""Driver by release of CUDA (NVIDIA, CUDA Compatibility, minor version compatibility)."""


def device() -> torch.device:
    """Return where this process computes: on its GPU, if torch sees one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(threads: int | None) -> str:
    """Say what this process computes on: "NVIDIA H100 80GB HBM3", "CPU, 2 threads"."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = threads or torch.get_num_threads()
    return f"CPU, {count} thread{'s' if count > 1 else ''}"


def refuse_unseen_gpus() -> None:
    """Raise a UserError where this machine has a GPU that torch should see, and does not.

    Nothing else would say so: the run would go on, on the CPU.
    """
    if (problem := unseen_gpus()) is not None:
        raise UserError(problem)


def unseen_gpus() -> str | None:
    """Say why torch, built for GPUs, sees none on a machine that has one; None where all is well.

    It is well, too, if the user has hidden them from this process, or has a torch for CPUs.
    """
    import torch

    built = torch.version.cuda
    if built is None or torch.cuda.is_available() or _hidden():
        return None
    said = driver()
    if not said and not any(glob.glob(pattern) for pattern in NODES):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    needed = OLDEST_DRIVER.get(int(built.split(".")[0]))
    version = re.match(r"\d+", said)
    advice = "See what nvidia-smi says"
    if needed is not None and version is not None and int(version[0]) < needed:
        advice = "Update the driver, or install a torch for an older CUDA"
    return (
        f"this machine has a GPU (driver: {said or 'no nvidia-smi to ask'}), and torch "
        f"{torch.__version__} sees none: {_reason()}. "
        + (f"CUDA {built} needs driver {needed} or newer. " if needed is not None else "")
        + (f"CUDA_VISIBLE_DEVICES is {visible!r}. " if visible is not None else "")
        + f'{advice}; to use the CPU all the same, set CUDA_VISIBLE_DEVICES=""'
    )


def driver() -> str:
    """Return the driver's version by nvidia-smi, or what that says instead of one.

    An empty text where there is no nvidia-smi, or it finds no GPU.
    """
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stdout + done.stderr).strip().partition("\n")[0]
    if "No devices were found" in said:
        return ""
    return said or f"nvidia-smi ended with {done.returncode}"


def _hidden() -> bool:
    """Say whether the user wants no GPU to be seen."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.split(",")[0].strip() in ("", "-1", "NoDevFiles")


def _reason() -> str:
    """Return what torch says of the missing GPU, without where to download a driver."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # a RuntimeError, or of whatever else is broken
        return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
    return "nothing"
