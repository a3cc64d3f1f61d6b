"""Forms of questions: how one is read from a proposal, and what checks its answer, if anything.

A proposal is hostile text. Nothing of it is evaluated: it is searched by regular expressions, and
digits are added.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from ttrl.data import arithmetic
from ttrl.settings.errors import did_you_mean
from ttrl.settings.plugins import errors_as_user_error, is_plugin, load_plugin
from ttrl.types import UserError

MAX_DIGITS = 64
"""Digits of a number in a sum; a longer one is no question."""
Answer = Callable[[str], str | None]
"""Function from a question's text to its answer; None: it has none, and is not asked."""


class Form(Protocol):
    """Reads questions from proposals; one with a method ``answer`` can check answers, too."""

    def question(self, proposal: str) -> str | None:
        """Return the question's text, as it is to be asked; None: there is none."""
        ...


class Block:
    """A question in a block, as R-Zero (arXiv 2508.05004) has it; nothing checks its answer."""

    def question(self, proposal: str) -> str | None:
        """Return what stands in the only block."""
        blocks = re.findall(r"<question>(.*?)</question>", proposal, re.DOTALL)
        text = blocks[0].strip() if len(blocks) == 1 else ""
        return text if text and "<question>" not in text else None


class Addition:
    """Sums of two numbers, in words or worked column by column.

    The embedded task's model writes nothing but worked sums, so the left-hand sides of the columns
    that a proposal begins with are its question: ``7+5=12`` and ``4+8+1=13`` ask what 47 + 85 is.
    What stands on the right, and what follows, is the proposer's own answer, which nobody reads.
    """

    _WORDS = re.compile(rf"What is ([0-9]{{1,{MAX_DIGITS}}}) \+ ([0-9]{{1,{MAX_DIGITS}}})\?")
    _COLUMN = re.compile(r"([0-9])\+([0-9])(?:\+1)?=[0-9]{1,2}")

    def question(self, proposal: str) -> str | None:
        """Return the question of a sum whose numbers have no zero in front."""
        words = self._WORDS.search(proposal)
        numbers = words.groups() if words else self._worked(proposal)
        if numbers is None or any(len(n) > 1 and n[0] == "0" for n in numbers):
            return None
        return arithmetic.question(int(numbers[0]), int(numbers[1]))

    def answer(self, question: str) -> str | None:
        """Return the sum."""
        found = self._WORDS.fullmatch(question)
        return None if found is None else str(int(found[1]) + int(found[2]))

    def _worked(self, proposal: str) -> tuple[str, str] | None:
        """Return the numbers of two columns or more, of which the last is the first digit."""
        a, b = "", ""
        for line in filter(None, proposal.split("\n")):
            column = self._COLUMN.fullmatch(line)
            if column is None or len(a) == MAX_DIGITS:
                break
            a, b = column[1] + a, column[2] + b
        return (a, b) if len(a) > 1 else None


FORMS: dict[str, Callable[[], Form]] = {"block": Block, "addition": Addition}
"""Forms by their name in ``posed.form``."""


class OwnForm:
    """A user's own form; what it raises, and what is no text, is a UserError that says where."""

    def __init__(self, name: str) -> None:
        """Make the object of the class that FILE.py:CLASS names.

        Raises:
            UserError: if the class is not there or raises, or makes what is no form.
        """
        self.name = name
        made = load_plugin(name, "posed.form")
        with errors_as_user_error(name, "posed.form"):
            self.form = made()
        if not callable(getattr(self.form, "question", None)):
            raise UserError(f"posed.form = {name!r} makes an object that has no method question")
        if callable(getattr(self.form, "answer", None)):
            self.answer = lambda question: self._text("answer", question)

    def question(self, proposal: str) -> str | None:
        """Return what the user's form reads."""
        return self._text("question", proposal)

    def _text(self, method: str, text: str) -> str | None:
        with errors_as_user_error(self.name, "posed.form"):
            found = getattr(self.form, method)(text)
        if found is not None and not isinstance(found, str):
            raise UserError(
                f"posed.form = {self.name!r}: {method} returned {found!r}, expected text or None"
            )
        return found


def make_form(name: str) -> Form:
    """Make the form that ``posed.form`` names.

    Raises:
        UserError: if there is none of that name, or a user's own cannot be made.
    """
    if is_plugin(name):
        return OwnForm(name)
    if name not in FORMS:
        raise UserError(
            f"posed.form = {name!r} is unknown{did_you_mean(name, FORMS)}: expected one of "
            f"{', '.join(FORMS)}, or FILE.py:CLASS for your own"
        )
    return FORMS[name]()


def checker_of(form: Form) -> Answer | None:
    """Return what answers a form's questions; None: nothing does."""
    found: Answer | None = getattr(form, "answer", None)
    return found
