"""Another Python process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},  # vLLM obeys it
    "PYTHONPATH": os.pathsep.join([*(p for p in sys.path if p), str(Path(__file__).parent)]),
    "CUDA_VISIBLE_DEVICES": "",
}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, without a GPU, in an environment that finds ttrl."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
