"""Which answers are the same: the one grader of votes, rewards, metrics and evaluation."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Self

from ttrl.answers.canonical import read
from ttrl.answers.symbolic import Question, analyse
from ttrl.answers.workers import UNDECIDED, Workers
from ttrl.settings import AnswerSettings

REMEMBERED = 100_000
"""Replies that are kept: the same questions come back every epoch, and so do their answers."""


class Classes(NamedTuple):
    """Equivalence classes of answers."""

    name_of: Mapping[str, str]
    """Answer -> name of its class, which is the smallest canonical form (by `tie_order`) of its
    members, and their unit if the same value is there with another; "" for an answer without
    content."""
    undecided: frozenset[str]
    """Answers that the symbolic stage could not read in time: compared by spelling only."""


class Grader:
    """Sorts answers into equivalence classes; usable from any thread.

    Answers with the same canonical form have the same value (`ttrl.answers.canonical`). If several
    forms are left, those that contain algebra are compared by value (`ttrl.answers.symbolic`).
    Answers of the same value are the same unless they are given with several units: then those
    with each unit are a class, and those without any are another.
    """

    def __init__(self, settings: AnswerSettings | None = None) -> None:
        """Take the settings, or the default ones; nothing is started before it is needed."""
        self.settings = settings or AnswerSettings()
        self._workers = Workers(self.settings)
        self._lock = threading.Lock()
        self._replies: OrderedDict[Question, str | object | None] = OrderedDict()

    def __enter__(self) -> Self:
        """Return the grader, which the end of the context closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all worker processes."""
        self.close()

    def classes(self, answers: Iterable[str]) -> Classes:
        """Sort answers into equivalence classes, which do not depend on the answers' order.

        Raises:
            UserError: if computer algebra is needed and does not start.
        """
        readings = {answer: read(answer) for answer in answers}
        keys, unread = self._keys({reading.form for reading in readings.values()} - {""})
        members: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for form, unit in set(readings.values()):
            if form:
                members[keys[form]][unit].add(form)
        name_of = {("", unit): "" for form, unit in readings.values() if not form}
        for forms_of in members.values():
            name = min(set.union(*forms_of.values()), key=tie_order)
            several = len(forms_of.keys() - {""}) > 1
            for unit, forms in forms_of.items():
                suffix = rf"\text{{ {unit}}}" if several and unit else ""
                name_of |= dict.fromkeys(((form, unit) for form in forms), name + suffix)
        return Classes(
            {answer: name_of[reading] for answer, reading in readings.items()},
            frozenset(answer for answer, reading in readings.items() if reading.form in unread),
        )

    def _keys(self, forms: set[str]) -> tuple[dict[str, str], set[str]]:
        """Return each form's key, equal for equal values; and the forms not read in time."""
        if not self.settings.symbolic or len(forms) < 2:
            return {form: form for form in forms}, set()
        analysed = {form: analyse(form) for form in forms}
        replies = self._ask({q for form in analysed.values() for q in form.questions()})
        known = {q: reply for q, reply in replies.items() if isinstance(reply, str)}
        return {form: parts.key(known) for form, parts in analysed.items()}, {
            form
            for form, parts in analysed.items()
            if any(replies[q] is UNDECIDED for q in parts.questions())
        }

    def equivalent(self, a: str, b: str) -> bool:
        """Say whether two answers are the same; an answer without content is equivalent to none."""
        (same,) = self.agree((a,), b)
        return same

    def agree(self, answers: Sequence[str | None], reference: str) -> tuple[bool, ...]:
        """Say which answers are the same as a reference; an abstention (None) never is.

        Each is compared by itself: if the reference leaves the unit out, any may be given.
        """
        given = {answer: read(answer) for answer in (*answers, reference) if answer is not None}
        keys, _ = self._keys({reading.form for reading in given.values()} - {""})
        form, unit = given[reference]
        same = {
            answer: reading.form != ""
            and keys[reading.form] == keys.get(form)
            and (reading.unit == unit or "" in (reading.unit, unit))
            for answer, reading in given.items()
        }
        return tuple(answer is not None and same[answer] for answer in answers)

    def close(self) -> None:
        """End all worker processes at once."""
        self._workers.close()

    def _ask(self, questions: set[Question]) -> dict[Question, str | object | None]:
        """Return the replies to these questions, as far as possible those of last time.

        An undecided question stays so: a vote, and the comparisons with its label that follow,
        must not see different classes because the machine was busy for one of them.
        """
        with self._lock:
            replies = {q: self._replies[q] for q in questions if q in self._replies}
        new = sorted(questions - replies.keys())
        found = dict(zip(new, self._workers.ask(new), strict=True))
        with self._lock:
            for question, reply in found.items():
                # Another thread may have asked the same: then its reply, which is in use, stands.
                replies[question] = self._replies.setdefault(question, reply)
            for question in questions & self._replies.keys():
                self._replies.move_to_end(question)
            while len(self._replies) > REMEMBERED:
                self._replies.popitem(last=False)
        return replies


def tie_order(form: str) -> tuple[int, str]:
    """Return a sort key that breaks ties of forms or spellings: shorter first, then by letters."""
    return len(form), form


@lru_cache(maxsize=1)
def default_grader() -> Grader:
    """Return the grader with the default settings, shared by all who name none."""
    return Grader()


def equivalent(a: str, b: str) -> bool:
    """Say whether two answers are the same, by the default grader."""
    return default_grader().equivalent(a, b)
