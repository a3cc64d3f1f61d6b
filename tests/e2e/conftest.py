"""A run that is small enough to be made many times."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console
from small_run import SMALL, Run

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("name", ["seed=1"])`` trains the small run in a new folder, which it returns."""

    def _run(name: str, overrides: Iterable[str] = ()) -> Path:
        settings = load_settings("tiny-arithmetic", overrides=[*SMALL, *overrides])
        train(settings, RunFolder(tmp_path / name), Display(Console(quiet=True)))
        return tmp_path / name

    return _run
