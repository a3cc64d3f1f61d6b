"""What the kernel says that ranks hold: bench/sharded_memory.py with a small model."""

from __future__ import annotations

import json
from pathlib import Path

from python_process import run_python

SCRIPT = Path(__file__).parents[2] / "bench" / "sharded_memory.py"


def test_no_rank_ever_holds_a_whole_model(zero3_folder: Path) -> None:
    """Each phase stays below its bound, which is so close that one more copy would break it."""
    done = run_python(str(SCRIPT), "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    result = json.loads(done.stdout[done.stdout.index("{") :])
    phases = result["ranks"]["2"]
    assert list(phases) == ["load", "update", "push", "export"]
    for name, phase in phases.items():
        assert phase["peak_mib"] <= phase["bound_mib"], name
        assert phase["bound_mib"] - phase["peak_mib"] < result["model_mib"], name
