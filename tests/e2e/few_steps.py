"""Short runs, killed by SIGKILL in some steps and gone on with, beside ones that were not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from python_process import run_python
from rich.console import Console
from small_run import SMALL

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train

KILLED = str(Path(__file__).with_name("killed_run.py"))


def trained_on(folder: Path, options: Sequence[str], *, resume: bool = False) -> Path:
    """Train in this process, with these settings over `SMALL`; returns the folder."""
    settings = load_settings("tiny-arithmetic", overrides=[*SMALL, *options])
    train(settings, RunFolder(folder), Display(Console(quiet=True)), resume=resume)
    return folder


def killed_and_continued(folder: Path, options: Sequence[str], at: Sequence[int]) -> Path:
    """Train, be killed in each of some steps, in their order, and go on to the end."""
    for step in at:
        done = run_python(KILLED, str(folder), str(step), *SMALL, *options, gpus=True)
        assert done.returncode == -9, done.stderr[-4000:]
    return trained_on(folder, options, resume=True)
