"""Finding the answer in a completion."""

from __future__ import annotations

import re
from collections.abc import Callable

from ttrl.answers.canonical import canonical
from ttrl.plugins import blamed_on, is_plugin, load_plugin
from ttrl.types import UserError

Extractor = Callable[[str], str | None]
"""From a completion's text to its answer; None abstains. Never an answer without content."""


def extract_answer(text: str, style: str = "boxed") -> str | None:
    """The answer in a completion, by one of the styles of ``answers.extract``.

    Raises:
        UserError: if there is no such style.
    """
    return make_extractor(style)(text)


def make_extractor(name: str) -> Extractor:
    """The extractor that ``answers.extract`` names.

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
    """A user's function, of which an empty text abstains: it must not win a vote."""

    def extract(text: str) -> str | None:
        with blamed_on(name, "answers.extract"):
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
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def _boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` holds.

    ``\fbox{...}`` counts too. A box is complete if its braces balance, so a truncated last box
    leaves the word to an earlier complete one. Of nested boxes the innermost holds the answer.
    Linear in the length of ``text``.

    Returns:
        The content as written, without white space around it; None if there is no complete box,
        or if the last one holds nothing but white space, spacing commands or control characters.
    """
    content = slice(0, 0)
    open_braces: list[int] = []  # where a box's content starts; -1 for any other brace
    for token in _BRACES.finditer(text):
        if token.lastgroup == "box":
            open_braces.append(token.end())
        elif token.lastgroup == "open":
            open_braces.append(-1)
        elif token.lastgroup == "close" and open_braces:
            start = open_braces.pop()
            if start > content.start:  # else no box, or one around the box just found
                content = slice(start, token.start())
    return _with_content(text[content].strip())


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
_BOXED_CHOICE = re.compile(r"(?:\\text\{)?\(?([A-Za-z])(?:[).:}].*)?", re.DOTALL)


def _choice(text: str) -> str | None:
    r"""The letter of a multiple-choice answer: in the last box, else the last one in the text.

    Without a box, a capital letter counts if it stands alone and is

    - in brackets or in bold: ``(B)``, ``[B]``, ``**B**``;
    - or named: ``answer is B``, ``Answer: B``, ``option B``, ``choice B``;
    - or followed by a period, parenthesis, colon or the line's end: ``B.``, ``B)``. Of these, A
      and I are words more often than choices (``So do I.``) and do not count.

    A box that holds no letter is an answer all the same, as written.
    """
    box = _boxed(text)
    if box is not None:
        match = _BOXED_CHOICE.fullmatch(canonical(box))
        return match[1].upper() if match else box
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
    """What the last box holds; without a box, the last number: 5, -1,000, 0.5 or 3/4."""
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
