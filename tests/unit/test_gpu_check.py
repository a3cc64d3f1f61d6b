"""The script for machines with a GPU, as far as it can be run without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu_check.sh"


def test_dry_run_goes_through_every_step():
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--dry-run"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = Path(done.stdout.splitlines()[-1].split()[1])
    record = json.loads(written.read_text())
    assert record["machine"]["torch"] and len(record["runs"]) == 8
    for run in record["runs"]:
        assert run["rows"]["ttrl_kernels"]["ratio"] > 0
        assert not any("wrong" in row.get("failed", "") for row in run["rows"].values())
    assert "| ttrl_kernels |" in written.with_suffix(".md").read_text()
