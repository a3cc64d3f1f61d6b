"""The option that picks a profile, and the files that are written at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

RECORDS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--profile", choices=("tiny", "criterion", "cpu", "cuda"), default="tiny")
    parser.addoption("--output", default=None, help="folder for the JSON and the table")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    import profiles

    runs = profiles.profile(metafunc.config.getoption("--profile"))
    names = [f"{r.shape}, {'forward+backward' if r.backward else 'forward'}" for r in runs]
    metafunc.parametrize("run", runs, ids=names)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    import report

    name = config.getoption("--profile")
    text = report.markdown(RECORDS)
    terminalreporter.write_line(text)
    folder = config.getoption("--output")
    if folder and RECORDS:
        from machine import describe

        Path(folder).mkdir(parents=True, exist_ok=True)
        record = {"machine": describe() | report.kernel_packages(), "runs": RECORDS}
        stem = Path(folder) / f"kernels_{name}"
        stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        stem.with_suffix(".md").write_text(report.header(record["machine"]) + text)
