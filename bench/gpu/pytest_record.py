"""A plugin of pytest: outcomes as JSON, written after each test, so that a cut-off loses none.

    python -m pytest -p pytest_record --record FILE ...

A run in which every test was skipped fails: nothing was checked.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from record import write_json


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="file for the outcomes")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.getoption("--record")))


class Recorder:
    """Counts what passed, and keeps why anything else did not."""

    def __init__(self, path: Path) -> None:
        """Begin with none."""
        self.path = path
        self.passed = 0
        self.failed: list[dict[str, str]] = []
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that has ended, or its set-up where that decides."""
        if report.passed and report.when == "call":
            self.passed += 1
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that could not be read, or that skips itself."""
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.skipped:
            self.skipped[str(report.longrepr[2])] += 1
        if report.failed:
            self.failed.append({"test": report.nodeid, "why": report.longreprtext[-2000:]})
        found = {"passed": self.passed, "failed": self.failed, "skipped": dict(self.skipped)}
        write_json(self.path, found)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that checked nothing."""
        if self.passed == 0 and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
