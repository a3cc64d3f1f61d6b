"""Where a run's questions come from: what a step asks, as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from ttrl.data.questions import QuestionSet
from ttrl.data.rows import BadRow
from ttrl.types import Question, UserError

WINDOW = 8
"""Steps that guards compare with the first so many, where a source has no passes."""
Check = Callable[[Question], object]
"""Function that raises a `UserError` for a question that cannot be asked."""


class QuestionSource(Protocol):
    """Says what each step asks; it has no cursor, so there is nothing to save."""

    @property
    def total(self) -> int | None:
        """The number of steps that the source has; None: it has no end."""
        ...

    @property
    def window(self) -> int:
        """The number of steps that belong together, as a pass over a list: what guards compare."""
        ...

    def questions(self, step: int) -> list[Question]:
        """Return the questions of a step, counted from 1."""
        ...

    def further(self, step: int, first: int, count: int) -> list[Question]:
        """Return what a step asks in place of questions that teach nothing.

        All that a step may ask beyond its `questions` is a sequence without repetition, a function
        of the step as these are; this is its part from ``first`` on, or what there is of it.

        Args:
            step: the training step.
            first: how many of the sequence have been asked.
            count: how many are wanted.
        """
        ...

    def examples(self, count: int) -> list[Question]:
        """Return so many questions like those that it asks, or fewer, before it asks any."""
        ...

    def digest(self) -> str:
        """Return what tells the source from another one of the same settings."""
        ...


@runtime_checkable
class ArrivingSource(QuestionSource, Protocol):
    """A source whose questions come while the run goes on: each is checked when it comes."""

    checks: list[Check]
    """What refuses a question that the run cannot ask; see `refuse`."""


Source = tuple[QuestionSource, QuestionSet]
"""A source, and what of it can be listed, checked and measured on: of an endless one, nothing."""


def refuse(question: Question, checks: Sequence[Check]) -> None:
    """Raise a `BadRow` for a question that has come during a run, and does not pass all checks."""
    try:
        for check in checks:
            check(question)
    except UserError as error:
        raise BadRow(str(error)) from error
