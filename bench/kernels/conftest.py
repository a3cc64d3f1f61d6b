"""The options that pick a profile and a file, and what is written to it after each case."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

RECORDS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    import profiles

    parser.addoption("--profile", choices=profiles.NAMES, default="tiny")
    parser.addoption("--output", default=None, type=Path, help="file for the JSON")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    import profiles

    runs = profiles.profile(metafunc.config.getoption("--profile"))
    names = [f"{r.shape}, {'forward+backward' if r.backward else 'forward'}" for r in runs]
    metafunc.parametrize("run", runs, ids=names)


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Adds the numbers of a case to those that are printed at the end, and to the file."""

    def add(record: dict[str, Any]) -> None:
        import report
        from machine import describe

        RECORDS.append(record)
        path: Path | None = request.config.getoption("--output")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {"machine": describe() | report.kernel_packages(), "runs": RECORDS}
            beside = path.with_name(path.name + ".tmp")
            beside.write_text(json.dumps(found, indent=1) + "\n")
            beside.replace(path)

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    import report

    terminalreporter.write_line(report.markdown(RECORDS))
