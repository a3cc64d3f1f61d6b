"""Finding the answer in a completion."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ttrl.answers.canonical import canonical
from ttrl.settings.plugins import errors_as_user_error, is_plugin, load_plugin
from ttrl.types import UserError

Extractor = Callable[[str], str | None]
"""Function of a completion's text to its answer; None abstains. No answer is without content."""


def extract_answer(text: str, style: str = "boxed") -> str | None:
    """Extract the answer from a completion, by one of the styles of ``answers.extract``.

    Raises:
        UserError: if there is no such style.
    """
    return make_extractor(style)(text)


def make_extractor(name: str) -> Extractor:
    """Return the extractor that ``answers.extract`` names.

    Raises:
        UserError: if there is none.
    """
    if is_plugin(name):
        return _checked(load_plugin(name, "answers.extract"), name)
    if name in _STYLES:
        return _STYLES[name]
    raise UserError(
        f"answers.extract = {name!r} is unknown: expected FILE.py:FUNCTION or one of "
        f"{', '.join(_STYLES)}"
    )


def _checked(user: Callable[[str], object], name: str) -> Extractor:
    """Wrap a user's function so that an empty text abstains: it must not win a vote."""

    def extract(text: str) -> str | None:
        with errors_as_user_error(name, "answers.extract"):
            answer = user(text)
        if answer is not None and not isinstance(answer, str):
            raise UserError(
                f"answers.extract = {name!r} returned {answer!r}, of type "
                f"{type(answer).__name__}: expected a str, or None to abstain"
            )
        return _with_content(answer)

    return extract


def _with_content(answer: str | None) -> str | None:
    return answer if answer is not None and canonical(answer) else None


# An escaped character is consumed whole, so that neither brace of `\{ \}` counts, while the brace
# of `\\{` (a line break, then a group) does.
_BRACES = re.compile(
    r"""
      \\(?:boxed|fbox)(?![A-Za-z])
      (?: \s*(?P<box>\{)
        | \s{0,9} (?P<bare> (?> [-\N{MINUS SIGN}]?[0-9]+(?:[.,/][0-9]+)* ) | [A-Za-z]
                          | \\(?:text|textbf|mathrm|mathbf|sqrt)\s?\{[^{}\\]{0,99}\}
                          | \\[dt]?frac\s?\{[^{}]{1,99}\}\s?\{[^{}]{1,99}\} | \\pi )
          # and nothing that belongs to it
          (?! [A-Za-z0-9^_({] | \\[A-Za-z] | \s?[-+*/=^<>] | (?<=[A-Za-z])\s[A-Za-z] ) )?
    | \\. | (?P<open>\{) | (?P<close>\})
    """,
    re.DOTALL | re.VERBOSE,
)
_NAME = r"[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,3}\}))?\s{0,3}=\s{0,3}\$?\s{0,3}"
_BETWEEN = re.compile(
    rf"(?:[\s$,;&(){{}}\[\]\\!~*]|and|or|text|mathrm|quad)+(?<![A-Za-z])(?:{_NAME})?"
)
_SEPARATOR = re.compile(r"(?<!\\),|[;&]|and|or")
_NAMED = re.compile(rf"(?<![A-Za-z\\])({_NAME})\Z")
FARTHEST = 40
"""Characters between two boxes that form one answer."""
MOST = 20
"""Boxes that form one answer: of a longer list, the last ones."""


class _Box(NamedTuple):
    command: int
    """Where the box's command starts."""
    start: int
    stop: int
    """Where the box's content stops; it begins at ``start``."""
    end: int
    """Where the box ends."""


def _boxed(text: str) -> str | None:
    r"""Return what the last complete ``\boxed{...}`` holds, or the last few that form one answer.

    ``\fbox{...}`` counts too, and so does a box without braces around one number, letter, fraction
    or text: ``\boxed 5``. A box is complete if its braces balance, so a truncated last box leaves
    the word to an earlier complete one. Of nested boxes the innermost hold the answer. Boxes with
    nothing but commas, "and" or "or" between them are one list: ``\boxed{3}, \boxed{5}, and
    \boxed{7}`` is ``3, 5, 7``, and ``x=\boxed{1}, y=\boxed{2}`` is ``x=1, y=2``. Linear in the
    length of ``text``.

    Returns:
        The content as written, without white space around it; None if there is no complete box,
        or if the last one holds nothing but white space, spacing commands or control characters.
    """
    last: list[_Box] = []
    open_braces: list[tuple[int, int]] = []  # where a box and its content start; -1: another brace
    for token in _BRACES.finditer(text):
        kind = token.lastgroup
        found = None
        if kind == "box":
            open_braces.append((token.start(), token.end()))
        elif kind == "bare":
            found = _Box(token.start(), *token.span("bare"), token.end())
        elif kind == "open":
            open_braces.append((-1, -1))
        elif kind == "close" and open_braces:
            command, start = open_braces.pop()
            # Else no box, or one around the box just found.
            if start >= 0 and not (last and start <= last[-1].start):
                found = _Box(command, start, token.start(), token.end())
        if found is not None:
            if last and not _form_one(text, last[-1], found):
                last.clear()
            last = [*last[1 - MOST :], found]
    return _with_content(_joined(text, last))


def _form_one(text: str, box: _Box, following: _Box) -> bool:
    r"""Say whether two boxes are parts of one answer: ``\boxed{3} and \boxed{5}``."""
    if not 0 < following.command - box.end <= FARTHEST:
        return False
    between = text[box.end : following.command]
    return bool(_BETWEEN.fullmatch(between) and _SEPARATOR.search(between))


def _joined(text: str, boxes: list[_Box]) -> str | None:
    """Join the contents of boxes to one answer; None if one of them is empty."""
    contents = [text[box.start : box.stop].strip() for box in boxes]
    forms = {canonical(content) for content in set(contents)}
    if not contents or "" in forms:
        return None
    if len(forms) == 1:
        return contents[-1]  # said again
    names = [_NAMED.search(text[max(0, box.command - 20) : box.command]) for box in boxes]
    if all(names):
        signs = [re.sub(r"[\s$]", "", name[1]) for name in names if name]  # `x=`
        contents = [sign + content for sign, content in zip(signs, contents, strict=True)]
    return ", ".join(contents)


# Repetitions are bounded, so that a megabyte of spaces or asterisks costs its length alone.
_CHOICE = re.compile(
    r"""
    (?<![A-Za-z0-9'.\\-])
    (?: [(\[] \s? (?P<bracketed> [A-Z] ) \s? [)\]]
      | \*\* \(? (?P<bold> [A-Z] ) \)? [.:]? \*\*
      | (?i: answer | option | choice ) (?: \s{1,3} is )? \s{0,3} :? \s{0,3} \*{0,2} \$?
        (?: \\(?:text|textbf|mathbf|mathrm)\{ )? \(?
        (?P<named> [A-HJ-Z] | I (?! \s [a-z]) ) (?![A-Za-z0-9'])
      | (?P<marked> [B-HJ-Z] ) (?: [.):] (?!\w) | [ \t]{0,3} $ )
    )
    """,
    re.VERBOSE | re.MULTILINE,
)
_STYLE = re.compile(r"\\(?:text|math)?(?:bf|rm|it|sf|text|boldsymbol)(?![A-Za-z])|[{}$*~]|\\[,;! ]")
_BOXED_CHOICE = re.compile(
    r"""
      \s* (?: (?i: (?:the\s)? (?: option | choice | answer ) (?:\s is)? ) \s{0,3} :? \s{0,3} )?
      [(\[]? \s? (?: (?P<alone>[A-Za-z]) \s? (?: [)\].:] .* )?
                 | (?P<dashed>[A-Z]) \s? [-\N{EN DASH}\N{EM DASH}]{1,3} \s? [A-Za-z]{2} .* )
      \s*
    | [^()]* \( (?P<behind>[A-Z]) \) \s*
    """,
    re.VERBOSE | re.DOTALL,
)  # fmt: skip


def _choice(text: str) -> str | None:
    """Return the letter of a multiple-choice answer: in the last box, else the last in the text.

    Without a box, a capital letter counts if it stands alone and is

    - in brackets or in bold: ``(B)``, ``[B]``, ``**B**``;
    - or named: ``answer is B``, ``Answer: B``, ``option B``, ``choice B``;
    - or followed by a period, parenthesis, colon or the line's end: ``B.``, ``B)``. Of these, A
      and I are words more often than choices (``So do I.``) and do not count.

    In the box text may stand behind the letter (``(B) 5 m``, ``E - polygenic``) or before it
    (``Option B``, ``polygenic (E)``). A box that holds no letter is an answer all the same, as
    written.
    """
    box = _boxed(text)
    if box is not None:
        match = _BOXED_CHOICE.fullmatch(" ".join(_STYLE.sub(" ", box).split()))
        return match[match.lastgroup or 0].upper() if match else box
    letter = None
    for match in _CHOICE.finditer(text):
        letter = match[match.lastgroup or 0]
    return letter


_LAST_NUMBER = re.compile(
    r"""
    (?<![A-Za-z0-9_.]) (?: (?<![)\]}]) [-\N{MINUS SIGN}] )?
    (?: (?: [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ ) (?: \.[0-9]+ | / [0-9]+ )?
      | \.[0-9]+ )
    """,
    re.VERBOSE,
)


def _boxed_or_number(text: str) -> str | None:
    """Return what the last box holds; without a box, the last number: 5, -1,000, 0.5 or 3/4."""
    box = _boxed(text)
    if box is not None:
        return box
    number = None
    for match in _LAST_NUMBER.finditer(text):
        number = match[0]
    return number


_STYLES: dict[str, Extractor] = {
    "boxed": _boxed,
    "choice": _choice,
    "boxed_or_number": _boxed_or_number,
}
