r"""The parts of an answer: numbers, and the lists, sets, tuples and matrices that hold them."""

from __future__ import annotations

import re
from fractions import Fraction

# ---------------------------------------------------------------------------------------------
# Numbers

_ARGUMENT = r"(?:[0-9]|\{[+-]?[0-9]+\})"
NUMBER = re.compile(
    rf"""
    (?P<sign> [+-]? )
    (?: (?P<decimal> (?:[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+ | [0-9]+)(?:\.[0-9]+)? | \.[0-9]+ )
      | (?: (?P<whole> [0-9]+ ) (?: [ ] | (?=\\) ) )?       # of a mixed number
        (?: \\frac (?P<top> {_ARGUMENT} ) [ ]? (?P<bottom> {_ARGUMENT} )
          | (?P<dividend> [0-9]+ ) / (?P<divisor> [0-9]+ ) ) )
    """,
    re.VERBOSE,
)
CANONICAL_NUMBER = re.compile(r"-?[0-9]+(?:/[0-9]+)?")


def number(text: str) -> str:
    """The number, as an integer or a fraction in lowest terms; other text unchanged."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return text
    if match["decimal"]:
        value = Fraction(match["decimal"].replace(",", ""))
    else:
        top = int((match["top"] or match["dividend"]).strip("{}"))
        bottom = int((match["bottom"] or match["divisor"]).strip("{}"))
        mixed = match["whole"] is not None
        if bottom == 0 or (mixed and not 0 <= top < bottom):
            return text
        value = Fraction(top, bottom) + int(match["whole"] or 0)
    return str(-value if match["sign"] == "-" else value)


# ---------------------------------------------------------------------------------------------
# Brackets

_BRACKET = re.compile(
    r"(?P<open>[(\[{]|\\\{|\\begin(?![A-Za-z]))|(?P<close>[)\]}]|\\\}|\\end(?![A-Za-z]))"
    r"|(?P<separator>,|=|<|>|\\(?:leq|geq|neq|cup)(?![A-Za-z]))|\\."
)


def split(text: str, separators: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The parts between separators that no bracket encloses, and those separators.

    The whole text is the only part if its brackets do not balance.
    """
    parts, found = [], []
    depth = start = 0
    for token in _BRACKET.finditer(text):
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        if depth < 0:
            break
        if depth == 0 and token.lastgroup == "separator" and token[0] in separators:
            parts.append(text[start : token.start()].strip())
            found.append(token[0])
            start = token.end()
    if depth != 0:
        return [text], []
    return [*parts, text[start:].strip()], found


def content(text: str, opening: str, closing: str) -> str | None:
    """What a pair of brackets around the whole text encloses; None without such a pair."""
    if not (text.startswith(opening) and text.endswith(closing)):
        return None
    depth = 0
    for token in _BRACKET.finditer(text):
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        if depth == 0:
            closes = token.end() == len(text) and token.lastgroup == "close"
            return text[len(opening) : -len(closing)] if closes else None
    return None


# ---------------------------------------------------------------------------------------------
# What brackets and commas hold

_DELIMITER = re.compile(r"([(),\[\]]|\\[{}])")


def elements(text: str) -> str:
    """Numbers that stand alone in a tuple, list, set or interval; ", " after each element."""
    parts = _DELIMITER.split(text)  # element, delimiter, element, ..., element
    for i in range(0, len(parts), 2):
        element = parts[i].strip()
        before = parts[i - 1] if i > 0 else ","
        after = parts[i + 1] if i + 1 < len(parts) else ","
        alone = before in ("(", "[", ",", r"\{") and after in (")", "]", ",", r"\}")
        # The zeros of `(1,000)` may be digits of a thousand: they are no element 0.
        if alone and not re.match("0[0-9]", element):
            element = r"\infty" if element == r"+\infty" else number(element)
        parts[i] = element
    return "".join(", " if part == "," else part for part in parts).strip()


_EQUATION = re.compile(r"([A-Za-z])=([^=<>]+)")


def collection(text: str) -> str:
    r"""A set, or a list without brackets, in the order of its spellings.

    A list without brackets whose elements differ is the set of them: ``1,-2`` is ``\{-2, 1\}``.
    With an element twice it stays a list, since the repetition may be meant (a double root).
    """
    inside = content(text, r"\{", r"\}")
    members, _ = split(text if inside is None else inside, (",",))
    if not all(members) or (inside is None and len(members) == 1):
        return text
    equations = [match for member in members if (match := _EQUATION.fullmatch(member))]
    if len(equations) == len(members) > 1 and len({match[1] for match in equations}) == 1:
        members = [match[2] for match in equations]  # `x=1,x=2`
    members.sort()
    if inside is None and len(set(members)) < len(members):
        return ", ".join(members)
    return rf"\{{{', '.join(sorted(set(members)))}\}}"


_MATRIX = re.compile(
    r"\\begin\{(?P<name>[pbBvV]?matrix|smallmatrix|array)\}(?:(?<=array\})\{[lcr|]*\})?"
    r"(?P<body>(?:(?!\\begin|\\end).)*)\\end\{(?P=name)\}"
)
_ROW_END = re.compile(r"\\\\(?:\[[^\[\]]*\])?")


def matrix(text: str) -> str:
    r"""A matrix as a ``pmatrix`` with its cells' numbers; a determinant stays a ``vmatrix``."""
    inside = content(text, "(", ")") or content(text, "[", "]")
    match = _MATRIX.fullmatch(inside or text)
    if match is None or (inside and match["name"] not in ("matrix", "smallmatrix", "array")):
        return text
    name = match["name"] if match["name"] in ("vmatrix", "Vmatrix") else "pmatrix"
    rows = [
        "&".join(number(cell.strip()) for cell in row.split("&"))
        for row in _ROW_END.split(match["body"])
    ]
    if len(rows) > 1 and not rows[-1]:
        rows.pop()  # a line break after the last row
    return rf"\begin{{{name}}}" + r"\\".join(rows) + rf"\end{{{name}}}"


def cells(text: str) -> list[list[str]] | None:
    """The cells of a canonical matrix, row by row; None if the text is none."""
    match = _MATRIX.fullmatch(text)
    if match is None or match["name"] != "pmatrix":
        return None
    return [row.split("&") for row in _ROW_END.split(match["body"])]
