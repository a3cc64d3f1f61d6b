"""Whole runs whose engine or trainer comes to grief: a bounded end, a clear message, no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import children_of, command_of
from small_run import SMALL, UNMEASURED

TTRL = [sys.executable, "-m", "ttrl.cli", "train", "tiny-arithmetic"]
OPTIONS = [
    option
    for setting in (
        *SMALL,
        *UNMEASURED,
        "max_steps=500",
        "epochs=100",
        "rollout.placement=separate",
        "rollout.engines=2",
        "rollout.stuck_after_s=10",
    )
    for option in ("--set", setting)
]
END_S = 60
"""Longer than rollout.stuck_after_s, and far shorter than the run."""

Runs = Callable[[], tuple["subprocess.Popen[str]", list[int]]]


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


class Run:
    """A run with two engines, seen to be in its third step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*TTRL, *OPTIONS, "--run-dir", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        metrics = folder / "metrics.jsonl"
        _wait_until(lambda: self._has_ended() or self._lines(metrics) >= 3, 300)
        self.engines = sorted(children_of(self.process.pid, "ttrl.rollout.engines.engine_process"))
        assert len(self.engines) == 2, self.process.stderr and self.process.stderr.read()

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    @staticmethod
    def _lines(path: Path) -> int:
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def living(self) -> list[int]:
        """Engines that have not ended, whoever their parent is now."""
        return [pid for pid in self.engines if command_of(pid)]

    def end(self) -> tuple[int, str]:
        """Exit code and standard error, once it has ended by itself; no engine is left."""
        _, errors = self.process.communicate(timeout=END_S)
        _wait_until(lambda: not self.living(), 10)
        assert not (self.folder / "summary.json").exists()
        assert "Traceback" not in errors
        return self.process.returncode, errors


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "run")
    yield run
    run.process.kill()
    for pid in run.living():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("sent", "how"),
    [
        (signal.SIGKILL, "was ended by SIGKILL (often for want of memory)"),
        (signal.SIGSTOP, "made no progress for 1"),
    ],
)
def test_a_lost_engine_ends_the_run(run: Run, sent: signal.Signals, how: str) -> None:
    os.kill(run.engines[1], sent)
    code, errors = run.end()
    assert code == 2
    first = errors.splitlines()[0]
    assert first.startswith("ttrl: error: rollout engine ")
    assert f"of 2 (process {run.engines[1]}) {how}" in first
    assert "all engines were ended" in first


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_trainer_leaves_no_engine(run: Run, stopped: bool) -> None:
    """Not even a stopped one, which cannot notice it by itself."""
    if stopped:
        os.kill(run.engines[0], signal.SIGSTOP)
    run.process.kill()
    assert run.end() == (-signal.SIGKILL, "")


def test_ctrl_c_ends_engines_without_a_word_of_theirs(run: Run) -> None:
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    code, errors = run.end()
    assert code == 130
    (line,) = errors.splitlines()
    assert line.startswith("ttrl: interrupted. The answers up to step ")
    assert line.endswith(f"--replay {run.folder}/rollouts --run-dir {run.folder}-2")
