r"""When two answers are the same: they have the same canonical spelling, and no two other units.

A spelling is rewritten by rules that each keep its meaning, until no rule applies:

- layout goes, and symbols have one spelling each (`ttrl.answers.layout`), plain text that of
  LaTeX (`ttrl.answers.plain`);
- the unit is taken off (`ttrl.answers.units`), and what says whose value it is
  (`ttrl.answers.equations`);
- text is text, and one letter a choice or a variable (`ttrl.answers.words`);
- a number becomes an exact fraction in lowest terms: ``0.50``, ``\frac12``, ``2/4`` are ``1/2``
  (`ttrl.answers.numbers`); so does a number that stands alone between brackets and commas;
- sets lose their order, matrices the kind of their brackets (`ttrl.answers.elements`).

Nothing is evaluated but powers of ten in scientific notation, of at most two digits: what an
answer costs depends on its length alone. What spelling leaves open is for `ttrl.answers.symbolic`.
The rules, and the decisions where mathematics has none, are in ``docs/answers.md``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ttrl.answers.brackets import BRACKET
from ttrl.answers.elements import collection, elements, matrix
from ttrl.answers.equations import right_hand_side, unwrapped_set
from ttrl.answers.layout import clean, spaced
from ttrl.answers.numbers import number
from ttrl.answers.units import without_unit
from ttrl.answers.words import choice, word

LONGEST = 1000
"""Longer answers (in characters) are compared as they are, apart from white space."""
ROUNDS = 2 * LONGEST
"""Answers that are not settled after so many rewritings are compared as they are."""
_INTEGER = re.compile("-?[1-9][0-9]{0,17}")


class Canonical(NamedTuple):
    """An answer as it is read: its value and its unit."""

    form: str
    """The canonical spelling of its value; "" if the answer has no content."""
    unit: str
    """What the value counts; "" if the answer does not say."""


def read(answer: str) -> Canonical:
    """Return the canonical spelling of an answer, and its unit.

    Idempotent, because it applies rules until none changes anything. No rule should bring back what
    another one removes; should two of them do so, an answer must not keep a run from going on.
    """
    if _INTEGER.fullmatch(answer):
        return Canonical(answer, "")
    text = spaced(answer)
    units: set[str] = set()
    for _ in range(ROUNDS):
        if len(text) > LONGEST:
            return Canonical(spaced(answer), "")
        value, unit = without_unit(clean(text))
        if unit:
            units.add(unit)
        simpler = value if value != text else _rewrite(value)
        if simpler == text:
            break
        text = simpler
    else:
        return Canonical(spaced(answer), "")
    return Canonical(text, " ".join(sorted(units)))


def canonical(answer: str) -> str:
    """Return the canonical spelling of an answer's value; "" if the answer has no content."""
    return read(answer).form


def _rewrite(text: str) -> str:
    """Apply the first rule that changes the text, once."""
    for rule in _RULES:
        if (simpler := rule(text)) != text:
            return simpler
    return text


def _ungrouped(text: str) -> str:
    """Remove TeX's braces around the whole text."""
    if not (text.startswith("{") and text.endswith("}")):
        return text
    inside = len(text) - len(text.lstrip("{"))
    before = text.rstrip("}")
    escaped = (len(before) - len(before.rstrip("\\"))) % 2
    closing = len(text) - len(before) - escaped
    depth, pairs = 0, min(inside, closing)
    for token in BRACKET.finditer(text):
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        rest = len(text) - token.end()
        if token.start() >= inside and not rest == depth <= closing:
            pairs = min(pairs, depth)  # something follows that is in these only
    return text[pairs : len(text) - pairs] if pairs > 0 == depth else text


_RULES = (
    *(number, choice, _ungrouped, word, right_hand_side, unwrapped_set),
    *(elements, collection, matrix),
)
