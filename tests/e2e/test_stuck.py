"""A run that hangs ends by itself, and says where."""

from __future__ import annotations

from pathlib import Path

from python_process import run_python
from small_run import SMALL, UNMEASURED

HANGS = """
import time

class Hangs:
    def estimate(self, voted):
        time.sleep(3600)
"""


def test_an_estimator_that_hangs_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    hangs = (f"reward.estimator={tmp_path}/hangs.py:Hangs", "limits.rollout_s=10")
    settings = (*SMALL, *UNMEASURED, *hangs)
    folder = tmp_path / "run"
    done = run_python(
        *("-m", "ttrl.cli", "train", "tiny-arithmetic", "--run-dir", str(folder)),
        *(f"--set={s}" for s in settings),
        gpus=True,
    )
    assert done.returncode == 3, done.stderr
    assert "rollout took longer than limits.rollout_s = 10 seconds" in done.stderr
    assert f"train {folder}/config.toml --replay {folder}/rollouts --run-dir NEW" in done.stderr
    stacks = (folder / "stuck_0.txt").read_text()
    assert "hangs.py" in stacks and "in estimate" in stacks
    assert not (folder / "summary.json").exists()
