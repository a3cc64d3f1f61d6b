"""Test-time reinforcement learning: turn unlabeled questions into a better model."""

from ttrl.api import Run, train
from ttrl.types import UserError

__version__ = "0.1.0"

__all__ = ["Run", "UserError", "train"]
