"""Settings of every test; this file also makes pytest put the helpers beside it on the path."""

from __future__ import annotations

import gc
import shutil
import signal
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm_python

SLOW = {
    "browser": "a browser starts",
    "e2e": "runs from start to end",
    "rehearsal": "the code of a GPU, in processes that pretend to have one",
    "vllm": "vLLM takes half a minute to start",
    "zero3": "several processes under DeepSpeed",
    "kernels/test_build.py": "compiles the C++ rows and builds wheels",
    "kernels/test_sharded.py": "several processes",
    "kernels/test_triton_interpreted.py": "Triton's interpreter",
    "unit/test_architectures.py": "a model of each of 144 kinds",
    "unit/test_documented_commands.py": "runs the commands of the documents",
    "unit/test_gpu_check.py": "goes through the whole measurement of a GPU",
    "unit/test_gpu_parts.py": "starts each part of it",
    "unit/test_live_report.py": "starts processes that draw",
    "unit/test_lost_engine.py": "waits for processes that hang",
    "unit/test_packaging.py": "builds wheels",
    "unit/test_plan_memory.py": "follows each allocation of an update",
    "unit/test_policy_numbers.py": "updates in three types, with what is not finite",
    "unit/test_remote_engine.py": "engines in processes of their own",
    "unit/test_report_page.py": "draws many plots, and reads a run of 1000 steps",
    "unit/test_selftests.py": "Triton's interpreter",
}
"""Folders and files whose tests `make quick` leaves out, and what takes so long."""

if find_spec("hypothesis") is not None:  # tests on a GPU need none of it: bench/gpu_check.sh
    from hypothesis import settings

    # No time limit per example, since machines differ; and the same examples on every run, so that
    # a verdict belongs to a commit.
    settings.register_profile("ttrl", deadline=None, derandomize=True)
    settings.load_profile("ttrl")


def is_slow(path: Path) -> bool:
    """Whether `SLOW` lists a file, or its folder."""
    here = Path(__file__).parent
    name = path.relative_to(here).as_posix() if path.is_relative_to(here) else ""
    return name in SLOW or name.partition("/")[0] in SLOW


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file that is left out as a whole."""
    return True if config.option.markexpr == "not slow" and is_slow(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage in what tests make only: in what is imported that takes half of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `SLOW` lists, and begin with it: what is long should not be the last to begin."""
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have processes forked where there are many to start, and no GPU, which a fork cannot use."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by who starts the tests in background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else our children ignore it too
    slow = any(item.get_closest_marker("slow") for item in session.items)
    slow = slow and not session.config.option.collectonly
    if slow and sys.platform == "linux" and shutil.which("nvidia-smi") is None:
        warm_python.install()


@pytest.fixture
def cold_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes start as they do for a user."""
    monkeypatch.setattr(warm_python.WarmPopen, "nursery", None)
