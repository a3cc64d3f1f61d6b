r"""What stands before a value: ``x=5``, ``AB = 5``, ``P(A)=\frac12``, ``(x,y)=(1,2)``, ``2+3=5``.

A left-hand side goes if it names the value or has no variable, and the value has none: ``y=2x``
and ``x+y=5`` stay equations. The definition of a function (``f(x)=2x``) is its right-hand side.
"""

from __future__ import annotations

import re

from ttrl.answers.brackets import content, split
from ttrl.answers.numbers import NUMBER, number

_GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|phi|varphi|sigma|rho|omega|tau|epsilon|Delta|Omega"
_LETTER = rf"(?:(?<![A-Za-z\\])[A-Za-z]|\\(?:{_GREEK})(?![A-Za-z]))"
_INDEX = r"(?:_(?:[0-9A-Za-z]|\{[^{}]*\}))?"
_WORD = r"(?:[A-Z]{2,}|[A-Za-z]{3,}|\\text\{[^{}]*\})"
_ARGUMENTS = r"(?:\([^()]*\)|\[[^\[\]]*\])"
_FUNCTION = r"(?:[A-Zfghpqruv]|\\text\{[^{}]*\}|\\(?:Pr|mathbb\{[A-Z]\})|\\(?:phi|varphi))"
_SIMPLE = rf"(?:{_LETTER}'*{_INDEX}'*|{_WORD}{_INDEX})"
_NAME = re.compile(
    rf"""
      {_SIMPLE} | {_FUNCTION}'*{_INDEX}(?:\^(?:\{{-1\}}|\{{\([0-9]\)\}}|[0-9]))?{_ARGUMENTS}
    | m?\\(?:angle|triangle)[ ]?(?:[A-Z]+|{_LETTER})
    | \\(?:overline|vec|overrightarrow)\{{?[A-Za-z]+\}}?
    | \|{_SIMPLE}\| | \\\|{_SIMPLE}\\\| | \([ ]?{_LETTER}{_INDEX}(?:,[ ]?{_LETTER}{_INDEX})+\)
    | [A-Z](?:[ ][A-Z])+
    """,
    re.VERBOSE,
)  # fmt: skip
_DEFINITION = re.compile(r"[fghFGHPpquv](?:_[0-9])?'*(?:\^\{-1\})?\([a-z](?:, ?[a-z])*\)")
_LITERAL = re.compile(
    r"\\(?:text|begin|end)\{[^{}]*\}(?:\{[lcr|]*\})?|\\mathbb\{[A-Z]\}|"
    rf"\\(?!(?:{_GREEK})(?![A-Za-z]))[A-Za-z]+"
)
_VARIABLE = re.compile(rf"(?![ei](?![A-Za-z])){_LETTER}")
_WHOLE_NAME = re.compile(_LETTER)
_POINT = re.compile(rf"\([ ]?{_LETTER}{_INDEX}(?:,[ ]?{_LETTER}{_INDEX})+\)")
_ROUNDED = re.compile(r"\\pi ?=|e ?= ?(?:2\.[67]|\{?27[0-9]*\}?/)")
"""A left-hand side that is a number, and no name; ``e`` may be that of an eccentricity."""
_SIGNS = ("=", r"\approx", r"\in")
_APART = (",", r"\lor", r"\land")
"""What stands between two equations: `x=1, y=2`."""
_LEAD = re.compile(
    r"(?:\\text\{ ?)?(?i:(?:the )?(?:final )?answer(?: is)?|about|approximately|roughly|exactly)"
    r"[ :}]*(?P<value>[-+0-9.(\[\\].*)"
)


def constant(text: str) -> bool:
    """Say whether a text has no variable in it; e and i are none."""
    return _VARIABLE.search(_LITERAL.sub(" ", text)) is None


def right_hand_side(text: str) -> str:
    """Return the value without what says whose it is; an equation unchanged."""
    if "=" not in text and r"\approx" not in text and r"\in" not in text:
        match = _LEAD.match(text)
        return match["value"] if match else text
    sides, signs = split(text, _SIGNS)
    if not signs or not all(sides[1:]) or any(split(side, _APART)[1] for side in sides[1:-1]):
        return text
    if len(sides) == 2 and signs[0] == "=" and _DEFINITION.fullmatch(sides[0]):
        return sides[1]
    if _ROUNDED.match(text) or (_POINT.fullmatch(sides[0]) and not _is_sorted(sides[0])):
        return text
    left = None  # the last side that has no variable
    while signs:
        side, sign = sides[0], signs[0]
        if sign == r"\in" and constant(side):
            return text
        if side and constant(side):
            left = side
            if sign == r"\approx":
                return side  # exact, before its decimals
        elif side and not _NAME.fullmatch(side):
            return text
        sides, signs = sides[1:], signs[1:]
    value = sides[0]
    if constant(value):
        return text if left is not None and _is_rounding(left, value) else value
    return left if left is not None and _WHOLE_NAME.fullmatch(value) else text


def _is_rounding(exact: str, value: str) -> bool:
    r"""Say whether ``=`` may stand for ``\approx``: ``\sqrt2=1.41``, ``2/3=0.667``."""
    if "." not in value or NUMBER.fullmatch(value) is None:
        return False
    if NUMBER.fullmatch(exact):
        return number(exact) != number(value)
    return re.search(r"\\(?!cdot|%)[A-Za-z]|e", exact) is not None


def _is_sorted(point: str) -> bool:
    """Say whether the names in a point are in alphabetical order.

    ``(x,y)`` is the point's name; ``(y,x)=(1,2)`` is the point ``(2,1)``.
    """
    names = re.sub(r"[\\() ]", "", point).split(",")
    return names == sorted(names)


_REALS = {
    r"\mathbb{R}": r"(-\infty, \infty)",
    r"\text{all real numbers}": r"(-\infty, \infty)",
    r"\text{all reals}": r"(-\infty, \infty)",
    r"\{\}": r"\emptyset",
}
_BUILDER = re.compile(r"([a-z])(?:\\in ?\\mathbb\{R\})?[|:](.+)")


def unwrapped_set(text: str) -> str:
    r"""Unwrap a set: ``\{5\}`` is ``5``, ``\{x|x>2\}`` is ``x>2``, ``\mathbb{R}`` an interval."""
    if text in _REALS:
        return _REALS[text]
    inside = content(text, r"\{", r"\}")
    if inside is None:
        return text
    if match := _BUILDER.fullmatch(inside):
        return match[2] if match[1] in match[2] else text
    if split(inside, (",",))[1] or not inside or "|" in inside:
        return text
    a_set = inside == r"\emptyset" or content(inside, r"\{", r"\}") is not None
    return text if a_set else inside
