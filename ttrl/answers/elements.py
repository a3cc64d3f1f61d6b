r"""The lists, sets, tuples and matrices that hold numbers and words."""

from __future__ import annotations

import re

from ttrl.answers.brackets import content, split
from ttrl.answers.numbers import number
from ttrl.answers.words import word

_DELIMITER = re.compile(r"([(),\[\]]|\\[{}])")


def elements(text: str) -> str:
    """Reduce numbers that stand alone in a tuple, list, set or interval; put ", " between them."""
    parts = _DELIMITER.split(text)  # element, delimiter, element, ..., element
    if len(parts) == 1:
        return text
    for i in range(0, len(parts), 2):
        element = parts[i].strip()
        before = parts[i - 1] if i > 0 else ","
        after = parts[i + 1] if i + 1 < len(parts) else ","
        alone = before in ("(", "[", ",", r"\{") and after in (")", "]", ",", r"\}")
        # The zeros of `1, 000` may be digits of a thousand: they are no element 0.
        if alone and not re.match("0[0-9]", element):
            element = r"\infty" if element == r"+\infty" else number(element)
        parts[i] = element
    return "".join(", " if part == "," else part for part in parts).strip()


_EQUATION = re.compile(r"([A-Za-z])=([^=<>]+)")


def collection(text: str) -> str:
    r"""Sort a set, or a list without brackets, by the spellings of its elements.

    A list without brackets whose elements differ is the set of them: ``1,-2`` is ``\{-2, 1\}``.
    With an element twice it stays a list, since the repetition may be meant (a double root).
    """
    if ";" in text and not split(text, (",",))[1]:
        text = text.replace(";", ", ") if "," not in text else ", ".join(split(text, (";",))[0])
    if "," not in text:
        return text
    inside = content(text, r"\{", r"\}")
    members, _ = split(text if inside is None else inside, (",",))
    if not all(members) or len(members) == 1:
        return text
    members = list(map(word, members))
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
    r"""Write a matrix as a ``pmatrix`` of canonical numbers; a determinant stays a ``vmatrix``.

    Brackets around a matrix say no more than those it has: ``(\begin{pmatrix}...)`` is one.
    """
    if r"\begin" not in text:
        return text
    inside = content(text, "(", ")") or content(text, "[", "]")
    match = _MATRIX.fullmatch(inside or text)
    if match is None:
        return text
    name = match["name"] if match["name"] in ("vmatrix", "Vmatrix") else "pmatrix"
    rows = [
        "&".join(map(number, row.split("&")))  # a space is behind a comma, and stays
        for row in _ROW_END.split(match["body"])
    ]
    if len(rows) > 1 and not rows[-1]:
        rows.pop()  # a line break after the last row
    return rf"\begin{{{name}}}" + r"\\".join(rows) + rf"\end{{{name}}}"


def cells(text: str) -> list[list[str]] | None:
    """Return the cells of a canonical matrix, row by row; None if the text is none."""
    match = _MATRIX.fullmatch(text)
    if match is None or match["name"] != "pmatrix":
        return None
    return [row.split("&") for row in _ROW_END.split(match["body"])]
