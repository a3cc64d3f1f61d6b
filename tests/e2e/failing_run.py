"""A run that comes to grief in step 2: ``failing_run.py FAULT FOLDER SETTING...``, alone or under
torchrun.

FAULT is "killed": rank 0 is, during the update; or "full disk": the step's answers find no room.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console

from ttrl.learner.trained_model import TrainedModel
from ttrl.report.display import Display
from ttrl.run import run_folder
from ttrl.run.disk import Disk
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError


class FullDisk(Disk):
    """No room for what was sampled in step 2."""

    def write(self, path: Path, content: Any) -> None:
        """Write half of it."""
        if path.name.startswith("step_00002.safetensors"):
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().write(path, content)


def kill_in_update() -> None:
    """Have rank 0 killed when the second step's update has begun."""
    accumulate, begun = TrainedModel.update, []

    def update(self: TrainedModel, *more: Any) -> Any:
        begun.append(1)
        if len(begun) == 2 and self.ranks.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        return accumulate(self, *more)

    TrainedModel.update = update  # type: ignore[method-assign]


if __name__ == "__main__":
    fault, folder, *overrides = sys.argv[1:]
    if fault == "killed":
        kill_in_update()
    else:
        run_folder.disk = FullDisk()
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    try:
        train(settings, RunFolder(Path(folder)), Display(Console()))
    except UserError as error:
        # Into a file of its own: on one stderr the lines of two ranks can break each other up.
        rank = os.environ.get("RANK", "0")
        Path(folder).with_name(f"error_of_rank_{rank}.txt").write_text(str(error))
        if dist.is_initialized():  # the first to end would be the end of the others
            dist.monitored_barrier(timeout=timedelta(seconds=200))
        sys.exit(2)
