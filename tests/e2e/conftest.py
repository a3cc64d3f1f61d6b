"""A run that is small enough to be made many times."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console
from small_run import SMALL, Run

from ttrl.report.display import Display
from ttrl.run.live_report import LiveReport
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train


def trained(folder: Path, overrides: Iterable[str] = ()) -> Path:
    """The folder of a new small run."""
    settings = load_settings("tiny-arithmetic", overrides=[*SMALL, *overrides])
    train(settings, RunFolder(folder), Display(Console(quiet=True)))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("name", ["seed=1"])`` trains the small run in a new folder, which it returns."""
    return lambda name, overrides=(): trained(tmp_path / name, overrides)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with another seed and its page, for whoever only reads it."""
    return trained(tmp_path_factory.mktemp("small") / "run", ["seed=3", "report.every_s=60"])


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes seconds; test_train.py and test_live_report.py have it."""
    for method in ("refresh", "finish"):
        monkeypatch.setattr(LiveReport, method, lambda report: None)
