"""Test-time reinforcement learning: turn unlabeled questions into a better model."""

import os

from ttrl.api import Run, train
from ttrl.types import UserError

__version__ = "0.1.0"

__all__ = ["Run", "UserError", "train"]

# Read when torch is loaded, which is after this unless a script has imported it before. Its threads
# wait for each other by spinning, a while as long as that between two operations of a small model,
# and then sleep: threads that spin on, on a core that others use too, keep the one that they wait
# for from running, and those that sleep at once are woken up for every operation
# (bench/end_to_end/beside_load.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
