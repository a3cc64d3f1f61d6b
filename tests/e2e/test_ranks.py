"""Several processes, as the user who started them sees them."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import children_of
from python_process import run_python
from small_run import SMALL, UNMEASURED
from step_lines import step_lines

from ttrl.report.results import load_results

COMMAND = ("-m", "ttrl.cli", "train", "tiny-arithmetic", *(f"--set={s}" for s in SMALL))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    """What torchrun has to say of it would be forty."""
    folder = tmp_path / "run"
    command = (*COMMAND, "--ranks=2", f"--run-dir={folder}")
    done = run_python(*command, "--set=policy.backend=local")
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if "Gloo" not in x]
    assert line.startswith('ttrl: error: policy.backend = "local" holds the policy in one process')
    folder.mkdir()
    done = run_python(*command)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ttrl: error: run folder {folder} exists")


def test_zero3_in_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("--set=policy.backend=zero3", "--set=max_steps=1", "--set=data.held_out=none")
    done = run_python(*COMMAND, *settings, f"--run-dir={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "summary.json").is_file()


def _stepped(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists() and len(step_lines(folder)) > 0


def test_two_ranks_measure_what_one_process_does(tmp_path: Path) -> None:
    data = Path(__file__).with_name("few_held_out.jsonl")
    command = (
        *("-m", "ttrl.cli", "eval", "tiny-base", str(data), "--recipe", "tiny-arithmetic"),
        *("--set", "evaluation.samples=4", "--set", "threads=1"),
    )
    files = tmp_path / "one.json", tmp_path / "two.json"
    for file, ranks in zip(files, ((), ("--ranks", "2")), strict=True):
        done = run_python(*command, "--json", str(file), *ranks)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("pass@1") == 1
    one, two = map(load_results, files)
    assert one[0].questions == two[0].questions
    assert 0 < one[0].mean("pass@1").value < 1


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Two ranks that have made a step."""
    unmeasured = [f"--set={s}" for s in UNMEASURED]
    options = ("--ranks=2", "--set=max_steps=500", "--set=epochs=100", *unmeasured)
    with subprocess.Popen(
        [sys.executable, *COMMAND, *options, f"--run-dir={folder}"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_for(lambda: _stepped(folder) or process.poll() is not None)
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c(tmp_path: Path) -> None:
    with started(tmp_path / "run") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("ttrl: interrupted") == 1
    assert "Traceback" not in errors


def test_no_rank_outlives_its_launcher(tmp_path: Path) -> None:
    with started(tmp_path / "run") as process:
        ranks = children_of(process.pid, "ttrl.cli")
        assert len(ranks) == 2
        process.kill()
        process.wait()
        wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))
