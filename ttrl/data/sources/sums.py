"""Additions that never end: the embedded task as a stream, other questions in every step."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from ttrl.data import arithmetic
from ttrl.data.prompts import make_question
from ttrl.data.questions import QuestionSet
from ttrl.data.sources.base import WINDOW, Source
from ttrl.settings import Settings
from ttrl.types import AnswerKey, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Sums:
    """A stream of additions of all levels, without the embedded task's own questions."""

    total = None
    window = WINDOW

    def __init__(self, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ask ``rollout.questions_per_step`` in each step, drawn by ``seed``."""
        self.settings, self.tokenizer = settings, tokenizer
        self.reserved = arithmetic.reserved()

    def questions(self, step: int) -> list[Question]:
        """Return the questions of a step, counted from 1; they depend on nothing else."""
        return self._drawn(step, self.settings.rollout.questions_per_step)

    def further(self, step: int, first: int, count: int) -> list[Question]:
        """Return what would be drawn next; see `QuestionSource`."""
        begin = self.settings.rollout.questions_per_step + first
        return self._drawn(step, begin + count)[begin:]

    def examples(self, count: int) -> list[Question]:
        """Return the first questions that are drawn in the first step."""
        return self._drawn(1, count)

    def _drawn(self, step: int, count: int) -> list[Question]:
        """Return the first ``count`` questions that a step's random numbers give."""
        rng = random.Random(f"sums {self.settings.seed} {step}")
        asked: dict[str, Question] = {}
        while len(asked) < count:
            level = rng.choice(arithmetic.LEVELS)
            a, b = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
            if (a, b) not in self.reserved:
                question = self._question(a, b)
                asked[question.id] = question
        return list(asked.values())

    def digest(self) -> str:
        """Return a digest of the first step: templates and tokenizers are in no setting."""
        first = [(question.id, question.prompt_ids) for question in self.questions(1)]
        return hashlib.sha256(repr(first).encode()).hexdigest()

    def _question(self, a: int, b: int) -> Question:
        text = arithmetic.question(a, b)
        return make_question(f"{a}+{b}", text, self.settings.data, self.tokenizer)


def sums(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Source:
    """Make the stream; as it cannot be listed, nothing is measured on it before and after."""
    return Sums(settings, tokenizer), QuestionSet((), AnswerKey(), ())
