"""A killed run is left as it is, and said to be there, until it is continued."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

from python_process import run_python
from small_run import SMALL, UNMEASURED

COMMAND = [
    *("-m", "ttrl.cli", "train", "tiny-arithmetic"),
    *(f"--set={setting}" for setting in (*SMALL, *UNMEASURED, "max_steps=500", "epochs=100")),
]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_sigkill_and_start_again(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [*COMMAND, "--run-dir", str(folder)]
    with subprocess.Popen([sys.executable, *command]) as process:
        deadline = time.monotonic() + 120
        metrics = folder / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= 3):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    left = _hashes(folder)
    assert "summary.json" not in left

    again = run_python(*command)
    assert again.returncode == 2
    assert f"run folder {folder} exists (unfinished" in again.stderr
    assert "--resume" not in again.stderr  # there is no checkpoint
    assert f"--run-dir {folder}-2, add --replay {folder}/rollouts to train on" in again.stderr
    assert "Traceback" not in again.stderr

    resumed = run_python(*command, "--resume")
    assert resumed.returncode == 2
    assert "holds no complete checkpoint (nothing was saved)" in resumed.stderr
    assert f"ttrl train {folder}/config.toml --replay {folder}/rollouts" in resumed.stderr

    assert _hashes(folder) == left
