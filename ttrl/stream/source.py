"""A source of questions that arrive while the run goes on: one rank reads, the others are told."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ttrl.data import arithmetic
from ttrl.data.prompts import make_question
from ttrl.data.questions import QuestionReader, ReadQuestion
from ttrl.data.rows import Row
from ttrl.data.sources.base import WINDOW, Check, refuse
from ttrl.report.display import Display
from ttrl.settings import Settings
from ttrl.settings.serve_rules import serves
from ttrl.stream.answers import answer_record
from ttrl.stream.inbox import Read
from ttrl.stream.inputs import refuse_no_input
from ttrl.stream.stream import Stream
from ttrl.system.ranks import Ranks
from ttrl.types import AnswerKey, CompletionGroup, Question, Vote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAID_AFTER_S = 2.0
"""Seconds of waiting after which it is said."""


class StreamSource:
    """A `QuestionSource` whose steps are known only when their questions have come.

    Which question belongs to which step is written down before it is asked, so that the source is
    a function of the step for every process that goes on with the run.
    """

    total = None
    window = WINDOW

    def __init__(
        self, settings: Settings, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
    ) -> None:
        """Make a source that nothing has come from; `running` opens it.

        Raises:
            UserError: if ``data.train`` names nothing that a stream can be read from.
        """
        ranks.on_rank_zero(lambda: refuse_no_input(settings.data.train))
        self.settings, self.ranks = settings, ranks
        self.checks: list[Check] = []
        """What a row must pass to be accepted."""
        self._tokenizer = tokenizer
        self._answers: dict[str, str] = {}
        self._levels: dict[str, str] = {}
        self.key = AnswerKey(self._answers, self._levels)
        """Reference answers of the questions that are being learned from, for metrics only."""
        self._stream: Stream | None = None  # of rank 0
        self._number = 0
        self._asked: dict[int, Question] = {}
        self.waited_s = 0.0
        """Seconds that the present step has waited for its questions."""
        self.has_ended = False
        """Whether the stream has ended, and all of its questions were asked."""

    @property
    def stream(self) -> Stream:
        """What rank 0 reads from, while it is `running`."""
        assert self._stream is not None
        return self._stream

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Read questions inside this context, into the run's folder; all ranks enter it together.

        Raises:
            UserError: see `Stream`.
        """

        def open_it() -> None:
            self._stream = Stream(self.settings, folder, self._reader)

        self.ranks.on_rank_zero(open_it)
        try:
            yield
        finally:
            if self._stream is not None:
                self._stream.close()

    # --- What is asked

    def wait_for(self, step: int, display: Display) -> bool:
        """Wait until the questions of a step are there; return False if none will come.

        All ranks call this together. It takes as long as it takes: no time limit is at work.
        """
        number, begun = 1 + (step - 1) // self.settings.stream.visits, time.monotonic()
        self.waited_s = 0.0
        if number == self._number:
            return True
        said = False

        def say() -> None:
            nonlocal said
            if not said and not serves(self.settings) and time.monotonic() - begun > SAID_AFTER_S:
                display.note(f"step {step}: waiting for questions of {self.settings.data.train}")
                said = True

        def take() -> dict[int, ReadQuestion] | None:
            with display.bar("waiting", self.settings.rollout.questions_per_step):
                return self.stream.take(number, say)

        found = self.ranks.on_rank_zero(take)
        self.waited_s = time.monotonic() - begun
        if found is None:
            self.has_ended = True
            return False
        for read in found.values():
            for remark in read.remarks:
                display.note(f"question {read.question.id!r}: {remark}")
            if read.answer is not None:
                self._answers[read.question.id] = read.answer
            if read.level is not None:
                self._levels[read.question.id] = read.level
        self._number, self._asked = number, {i: read.question for i, read in found.items()}
        return True

    @property
    def asked(self) -> tuple[int, ...]:
        """The numbers of the questions of the step that was waited for."""
        return tuple(self._asked)

    def questions(self, step: int) -> list[Question]:
        """Return the questions of the step that was waited for."""
        return list(self._asked.values())

    def further(self, step: int, first: int, count: int) -> list[Question]:
        """Return nothing: every question has its turn."""
        return []

    def digest(self) -> str:
        """Return a digest of a prompt: templates and tokenizers are in no setting."""
        (example,) = self.examples(1)
        return hashlib.sha256(repr(example.prompt_ids).encode()).hexdigest()

    def examples(self, count: int) -> list[Question]:
        """Return questions of ours, where some are needed before any has come."""
        data, texts = self.settings.data, [arithmetic.question(12 + i, 34) for i in range(count)]
        return [
            make_question(f"example-{i}", text, data, self._tokenizer)
            for i, text in enumerate(texts)
        ]

    # --- What is answered

    def is_first_visit(self, step: int) -> bool:
        """Say whether the questions of a step are asked for the first time."""
        return (step - 1) % self.settings.stream.visits == 0

    def is_last_visit(self, step: int) -> bool:
        """Say whether the questions of a step are not asked again."""
        return step % self.settings.stream.visits == 0

    def answer(
        self,
        step: int,
        updates: int,
        groups: Sequence[CompletionGroup],
        votes: Sequence[Vote],
        *,
        adapted: bool = False,
    ) -> None:
        """Write down what the votes on a step's questions answer; all ranks call this together.

        Questions that have their answers, from before the run was interrupted, keep them.

        Args:
            step: the training step.
            updates: the optimizer steps that the model had made.
            groups: the answers to the step's questions, in order.
            votes: how they have voted.
            adapted: whether the model had been trained on these very questions.
        """
        numbered = zip(self._asked.items(), groups, votes, strict=True)
        records = [
            {"number": i, "id": q.id, "step": step, "updates": updates, **answer_record(g, v)}
            for (i, q), g, v in numbered
        ]

        self.ranks.on_rank_zero(lambda: self.stream.answer(records, adapted=adapted))

    def forget(self, questions: Sequence[Question]) -> None:
        """Drop the labels of questions that are not asked again; they are in the inbox."""
        for question in questions:
            self._answers.pop(question.id, None)
            self._levels.pop(question.id, None)

    def _reader(self) -> Read:
        """Make a function that reads rows, for one thread: a tokenizer is not for two."""
        reader = QuestionReader(self.settings.data, copy.deepcopy(self._tokenizer))

        def read(row: Row) -> ReadQuestion:
            found = reader.read(row)
            refuse(found.question, self.checks)
            return found

        return read
