"""Which questions a step asks: a pure function of the step, so there is no cursor to save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttrl.system.rng import generator
from ttrl.types import Question, UserError


class QuestionOrder:
    """Every epoch is its own shuffle; its last incomplete step is dropped."""

    def __init__(self, questions: Sequence[Question], per_step: int, seed: int) -> None:
        """Order ``questions`` in steps of ``per_step``.

        Raises:
            UserError: if there are too few questions for one step.
        """
        if len(questions) < per_step:
            raise UserError(
                f"rollout.questions_per_step = {per_step}, but only {len(questions)} training "
                "questions were loaded; lower it"
            )
        self.questions = questions
        self.per_step = per_step
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Complete steps in one pass."""
        return len(self.questions) // self.per_step

    @property
    def left_out(self) -> int:
        """Questions that a pass does not ask; other ones in each."""
        return len(self.questions) % self.per_step

    def take(self, step: int) -> list[Question]:
        """The questions of ``step``, counted from 1."""
        epoch, i = divmod(step - 1, self.steps_per_epoch)
        shuffled = generator(self.seed, "order", epoch).permutation(len(self.questions))
        picked: np.ndarray = shuffled[i * self.per_step : (i + 1) * self.per_step]
        return [self.questions[j] for j in picked]
