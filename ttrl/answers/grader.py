"""Which answers are the same: the one grader of votes, rewards, metrics and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from ttrl.answers.canonical import canonical
from ttrl.config import AnswerSettings


class Classes(NamedTuple):
    """Equivalence classes of answers."""

    name_of: Mapping[str, str]
    """Answer -> name of its class, which is the smallest canonical form (by `tie_order`) of its
    members; "" for an answer without content."""
    undecided: frozenset[str]
    """Answers that the symbolic stage could not read in time: compared by spelling only."""


class Grader:
    """Sorts answers into equivalence classes; usable from any thread."""

    def __init__(self, settings: AnswerSettings | None = None) -> None:
        """Nothing is started before it is needed."""
        self.settings = settings or AnswerSettings()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def classes(self, answers: Iterable[str]) -> Classes:
        """The classes of these answers; does not depend on their order."""
        return Classes({answer: canonical(answer) for answer in answers}, frozenset())

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two answers are the same; an answer without content is equivalent to none."""
        name_of = self.classes((a, b)).name_of
        return name_of[a] != "" and name_of[a] == name_of[b]

    def close(self) -> None:
        """End all worker processes."""
