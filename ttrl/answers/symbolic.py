r"""Which parts of an answer are algebra, and when two answers have the same value.

A canonical form is taken apart at its outer commas, brackets, unions and relations, down to
expressions. Each expression that spelling does not settle is a question to computer algebra, whose
reply is the expression's *key*: expressions with equal keys have equal values. The key of the
whole form is put together from those of its parts, where the order of a set does not count.

Why keys, and not a comparison of each pair of answers: equal keys are an equivalence relation
whatever the replies are, so classes depend neither on the order of the answers nor on which pairs
were compared; n answers are n questions instead of n(n-1)/2; and an expression's key can be kept
for the next time it comes up. A pairwise comparison also has to simplify a difference, whose cost
and success nobody can foresee.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ttrl.answers.brackets import content, split
from ttrl.answers.canonical import LONGEST
from ttrl.answers.elements import cells
from ttrl.answers.equations import constant
from ttrl.answers.notation import BARE, Expression, translate
from ttrl.answers.numbers import CANONICAL_NUMBER, number


class Question(NamedTuple):
    """A question to computer algebra: the key of an expression, or of a relation of two."""

    sides: tuple[Expression, ...]
    relation: str = ""
    r"""What stands between two sides: =, \neq, < or \leq."""


class Form(NamedTuple):
    """A canonical form, taken apart."""

    spelling: str
    question: Question | None = None
    kind: str = ""
    """Kind of a form with parts: an opening and a closing bracket, "set", "union", ..."""
    parts: tuple[Form, ...] = ()
    variable: str = ""
    """The only variable of an inequality, which says in which interval it is."""

    def questions(self) -> Iterator[Question]:
        """Yield all questions that the key depends on."""
        if self.question is not None:
            yield self.question
        for part in self.parts:
            yield from part.questions()

    def key(self, replies: Mapping[Question, str | None]) -> str:
        """Return a key that is equal for equal values; what has no reply counts as it is spelled.

        An inequality counts as its interval. The name of its variable tells it from others only if
        they have another one: ``x<1, y<2`` is not ``y<1, x<2``.
        """
        return self._key(replies, named=len(set(self._variables())) > 1)

    def _variables(self) -> Iterator[str]:
        if self.variable:
            yield self.variable
        for part in self.parts:
            yield from part._variables()

    def _key(self, replies: Mapping[Question, str | None], named: bool) -> str:
        if named and self.variable:
            return f"{self.variable}\5{self._key(replies, named=False)}"
        if self.question is not None:
            return _interval(replies.get(self.question)) or self.spelling
        if not self.parts:
            return self.spelling
        if self.kind == "both signs":
            return self._replace(kind="set")._key(replies, named)
        keys = [key for part in self.parts for key in part._flat_keys(self.kind, replies, named)]
        if self.kind == "list":
            keys.sort()
        elif self.kind in _UNORDERED:
            keys = sorted(set(keys))
            if len(keys) == 1 and not self.parts[0].is_set():
                return keys[0]  # `\\{5\\}` is `5`
            if self.kind == "and" and (both := _between(keys)):
                return both
        return _of_parts(self.kind, keys)

    def is_set(self) -> bool:
        """Say whether the form is written as a set: a set of it is another set."""
        return self.kind == "set" or self.spelling == r"\emptyset"

    def _flat_keys(
        self, kind: str, replies: Mapping[Question, str | None], named: bool
    ) -> list[str]:
        r"""Return the form's key; for ``\pm2`` in a set those of both numbers.

        A set in brackets stays one.
        """
        if kind == "set" and self.kind == "both signs":
            return [part._key(replies, named) for part in self.parts]
        if self.kind == "set" and kind not in ("union", "and"):
            inside = (k for part in self.parts for k in part._flat_keys("set", replies, named))
            return [_of_parts("set", sorted(set(inside)))]
        return [self._key(replies, named)]


def _of_parts(kind: str, keys: Iterable[str]) -> str:
    # Control characters are in no spelling, so that no text looks like a key.
    return f"\1{kind}\2{chr(3).join(keys)}\4"


def _interval(reply: str | None) -> str | None:
    r"""Return the key of the interval of a reply like ``<5`` or ``\geq5``; of others the reply."""
    match = _BOUND.fullmatch(reply or "")
    if match is None:
        return reply
    closed = match["sign"].startswith("\\")
    if match["sign"] in ("<", r"\leq"):
        return _of_parts("(]" if closed else "()", (r"-\infty", match["value"]))
    return _of_parts("[)" if closed else "()", (match["value"], r"\infty"))


def _between(keys: list[str]) -> str | None:
    r"""Return the key of the interval left by one bound below and one above; None for other keys.

    ``x>1\land x\leq3`` is such an interval.
    """
    found = list(filter(None, map(_INTERVAL.fullmatch, keys)))
    below = [match for match in found if match["high"] == r"\infty"]
    above = [match for match in found if match["low"] == r"-\infty"]
    if not len(keys) == len(found) == 2 or not below or not above:
        return None
    return _of_parts(below[0]["open"] + above[0]["close"], (below[0]["low"], above[0]["high"]))


_INTERVAL = re.compile("\1(?P<open>[(\\[])(?P<close>[)\\]])\2(?P<low>[^\3]*)\3(?P<high>[^\3]*)\4")
_BOUND = re.compile(r"(?P<sign><|>|\\[lg]eq)(?P<value>.+)")
_UNORDERED = ("set", "union", "and")
_RELATIONS = ("=", r"\neq", "<", r"\leq", ">", r"\geq")
_MIRRORED = {">": "<", r"\geq": r"\leq"}


def analyse(form: str) -> Form:
    """Take a canonical form apart; one that `canonical` left as it is has no parts either."""
    if len(form) > LONGEST:
        return Form(form)
    for reader in (_number, _union, _relation, _matrix, _bracketed, _list, _both_signs):
        if (found := reader(form)) is not None:
            return found
    expression = translate(form)
    if expression is None or len(form) == 1:
        return Form(form)
    if expression.latex == BARE and (len(atom := expression.atoms[0]) == 1 or number(atom) != atom):
        return Form(number(atom))  # `(2)`, `(A)`
    return Form(form, question=Question((expression,)))


def _number(form: str) -> Form | None:
    return Form(form) if CANONICAL_NUMBER.fullmatch(form) else None


def _relation(form: str) -> Form | None:
    r"""Read a relation, ``y=2x`` or ``x^2<3``, or a chain, ``-1<x\leq2``."""
    sides, relations = split(form, _RELATIONS)
    if not relations:
        return None
    if all(relation in _MIRRORED for relation in relations):
        sides.reverse()
        relations = [_MIRRORED[relation] for relation in reversed(relations)]
    if len(relations) == 1:
        expressions = [translate(side) for side in sides]
        if relations[0] in _MIRRORED or None in expressions:
            return Form(form)
        question = Question(tuple(e for e in expressions if e is not None), relations[0])
        names = {a for e in question.sides for a in e.atoms if not constant(a)}
        variable = names.pop() if relations[0] in ("<", r"\leq") and len(names) == 1 else ""
        return Form(form, question=question, variable=variable)
    if all(relation in ("<", r"\leq") for relation in relations):
        if len(sides) == 3 and _is_variable(sides[1]) and constant(sides[0]) and constant(sides[2]):
            kind = ("(" if relations[0] == "<" else "[") + (")" if relations[1] == "<" else "]")
            ends = analyse(sides[0]), analyse(sides[2])
            return Form(form, kind=kind, parts=ends, variable=sides[1])
        return Form(form, kind=" ".join(relations), parts=tuple(map(analyse, sides)))
    return Form(form)


def _is_variable(side: str) -> bool:
    expression = translate(side)
    return expression is not None and expression.latex == BARE and not constant(side)


def _union(form: str) -> Form | None:
    r"""Read a union, ``(0,1)\cup(2,3)``, ``x<1\lor x>2``, or an intersection, ``x>1\land y<3``."""
    for kind, signs in (("union", (r"\cup", r"\lor")), ("and", (r"\cap", r"\land"))):
        parts, found = split(form, signs)
        if found:
            return Form(form, kind=kind, parts=tuple(map(analyse, parts)))
    return None


def _matrix(form: str) -> Form | None:
    rows = cells(form)
    if rows is None:
        return None
    shape = " ".join(str(len(row)) for row in rows)
    return Form(form, kind=f"matrix {shape}", parts=tuple(analyse(c) for row in rows for c in row))


def _bracketed(form: str) -> Form | None:
    """Read a set, or a tuple or an interval, which look alike."""
    inside = content(form, r"\{", r"\}")
    if inside is not None:
        return Form(form, kind="set", parts=tuple(map(analyse, split(inside, (",",))[0])))
    for opening in "([":
        for closing in ")]":
            inside = content(form, opening, closing)
            elements, commas = split(inside or "", (",",))
            if commas:
                return Form(form, kind=opening + closing, parts=tuple(map(analyse, elements)))
    return None


def _list(form: str) -> Form | None:
    """Read a list without brackets that is no set, since something in it comes twice."""
    elements, commas = split(form, (",",))
    return Form(form, kind="list", parts=tuple(map(analyse, elements))) if commas else None


def _both_signs(form: str) -> Form | None:
    r"""Read ``1\pm\sqrt2`` as the set of two values; with more signs it is unclear of how many."""
    if form.count(r"\pm") != 1 or r"\mp" in form:
        return None
    signed = [form.replace(r"\pm", sign).removeprefix("+") for sign in "+-"]
    return Form(form, kind="both signs", parts=tuple(map(analyse, signed)))
