"""Test-time reinforcement learning: turn unlabeled questions into a better model."""

import os

from ttrl.api import Run, train
from ttrl.types import UserError

__version__ = "0.1.0"

__all__ = ["Run", "UserError", "train"]

# Read when torch is loaded, which is after this unless a script has imported it before. Its threads
# would wait for each other by spinning: on a core that others use too, that keeps the thread that
# they wait for from running.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
