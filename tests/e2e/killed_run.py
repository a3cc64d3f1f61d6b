"""A run that is killed: ``killed_run.py FOLDER STEP SETTING...``, alone or under torchrun.

The signal comes in the step STEP, when its answers and metrics are on disk and half a line of the
next ones is as well; the save that was going on has ended. A folder that is there is gone on with.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train


class KilledFolder(RunFolder):
    """Kills the process that writes into it."""

    def add_step(self, metrics: Mapping[str, Any]) -> None:
        """Write the step, and maybe die."""
        super().add_step(metrics)
        if metrics["step"] == int(sys.argv[2]):
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 4, "vote/maj')
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    settings = load_settings("tiny-arithmetic", overrides=sys.argv[3:])
    folder = KilledFolder(Path(sys.argv[1]))
    train(settings, folder, Display(Console()), resume=folder.path.exists())
