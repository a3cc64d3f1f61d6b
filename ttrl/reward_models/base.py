"""What a reward model is asked: how good each step of a solution is, or the whole of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Protocol

from ttrl.settings.reward_model import Reduction
from ttrl.types import Question

__all__ = ["Reduction", "RewardModel", "reduce"]


class RewardModel(Protocol):
    """Scores solutions: a process reward model each step, an outcome reward model the whole."""

    step: str
    """What ends a step of a solution."""

    def scores(self, question: Question, solutions: Sequence[str]) -> list[tuple[float, ...]]:
        """Return per solution the scores of its steps, each from 0 to 1.

        Args:
            question: what was asked.
            solutions: texts that a model wrote: hostile, and never evaluated. One may be
                unfinished, and end with a whole step.

        Returns:
            At least one score per solution; of an outcome reward model, exactly one.
        """
        ...


def reduce(scores: Sequence[float], how: Reduction) -> float:
    """Compute one score of a solution from those of its steps.

    Example: ``reduce((0.5, 0.8), "product") == 0.4``.
    """
    match how:
        case "last":
            return scores[-1]
        case "min":
            return min(scores)
        case "product":
            return math.prod(scores)
        case "mean":
            return fmean(scores)
