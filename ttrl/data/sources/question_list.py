"""A list of questions, in another order in each pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from ttrl.system.rng import generator
from ttrl.types import Question, UserError


class QuestionList:
    """A list of questions: every epoch is its own shuffle; its last incomplete step is dropped."""

    def __init__(
        self,
        questions: Sequence[Question],
        per_step: int,
        seed: int,
        epochs: int = 1,
        compared: int = 1,
    ) -> None:
        """Order ``questions`` in steps of ``per_step``, for ``epochs`` passes.

        Passes that guards compare are of ``compared`` steps or more: several, if they are short.

        Raises:
            UserError: if there are too few questions for one step.
        """
        if len(questions) < per_step:
            were = "question was" if len(questions) == 1 else "questions were"
            raise UserError(
                f"rollout.questions_per_step = {per_step}, but only {len(questions)} training "
                f"{were} loaded: set it to {len(questions)} or less"
            )
        self.all = questions
        self.per_step = per_step
        self.seed = seed
        self.per_pass = len(questions) // per_step
        self.window = self.per_pass * math.ceil(compared / self.per_pass)
        self.total = epochs * self.per_pass

    @property
    def left_out(self) -> int:
        """The number of questions that a pass does not ask; other ones in each pass."""
        return len(self.all) % self.per_step

    def questions(self, step: int) -> list[Question]:
        """Return the questions of a step, counted from 1."""
        epoch, i = divmod(step - 1, self.per_pass)
        shuffled = generator(self.seed, "order", epoch).permutation(len(self.all))
        picked: np.ndarray = shuffled[i * self.per_step : (i + 1) * self.per_step]
        return [self.all[j] for j in picked]

    def further(self, step: int, first: int, count: int) -> list[Question]:
        """Return others of the list, in an order of the step's own; see `QuestionSource`."""
        own = {question.id for question in self.questions(step)}
        shuffled = generator(self.seed, "further", step).permutation(len(self.all))
        others = [self.all[j] for j in shuffled if self.all[j].id not in own]
        return others[first : first + count]

    def examples(self, count: int) -> list[Question]:
        """Return the first questions that are asked."""
        asked = chain.from_iterable(map(self.questions, range(1, 1 + self.total)))
        return list(islice(asked, count))

    def digest(self) -> str:
        """Return a digest of all questions, in order."""
        digest = hashlib.sha256()
        for question in self.all:
            digest.update(repr((question.id, question.prompt_ids)).encode())
        return digest.hexdigest()
