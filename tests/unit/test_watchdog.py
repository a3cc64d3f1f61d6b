"""What hangs is ended in bounded time, and says where it hung."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from python_process import run_python

SCRIPT = """
import ctypes, sys, time
from pathlib import Path
from ttrl.system import watchdog

watchdog.GRACE_S = 0.5
dog = watchdog.Watchdog(Path(sys.argv[1]), "Continue with --resume")
with dog.phase("rollout", "limits.rollout_s", 60):
    pass
with dog.phase("update", "limits.update_s", 0.5):
    {body}
print("went on")
time.sleep(1.5)
"""


def run(body: str, stacks: Path) -> subprocess.CompletedProcess[str]:
    begun = time.perf_counter()
    done = run_python("-c", SCRIPT.format(body=body), str(stacks))
    assert time.perf_counter() - begun < 30  # the sleeps below are of an hour
    return done


def test_a_phase_that_hangs_ends_the_process_with_its_stacks(tmp_path: Path) -> None:
    done = run("time.sleep(3600)", tmp_path / "stuck_0.txt")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "update took longer than limits.update_s = 0.5 seconds" in done.stderr
    assert "stuck_0.txt. Continue with --resume" in done.stderr
    assert "line 11 in <module>" in (tmp_path / "stuck_0.txt").read_text()


def test_without_a_folder_the_stacks_go_to_the_screen(tmp_path: Path) -> None:
    done = run("time.sleep(3600)", tmp_path / "missing" / "stuck_0.txt")
    assert done.returncode == 3
    assert "line 11 in <module>" in done.stderr
    assert "What it was doing is above" in done.stderr


def test_code_that_holds_the_interpreter_is_ended_too(tmp_path: Path) -> None:
    done = run("ctypes.PyDLL(None).sleep(3600)", tmp_path / "stuck_0.txt")
    assert done.returncode == 1  # faulthandler's own
    assert done.stdout == ""
    assert "line 11 in <module>" in done.stderr


def test_a_phase_that_ends_in_time_is_forgotten(tmp_path: Path) -> None:
    done = run("time.sleep(0.01)", tmp_path / "stuck_0.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
    assert not (tmp_path / "stuck_0.txt").exists()


def test_an_error_inside_passes_through(tmp_path: Path) -> None:
    done = run("raise ValueError('own')", tmp_path / "stuck_0.txt")
    assert done.returncode == 1
    assert "ValueError: own" in done.stderr
    assert "limits" not in done.stderr
