"""Finding the answer in a completion."""

from __future__ import annotations

import re
from collections.abc import Callable

from ttrl.answers.canonical import canonical
from ttrl.plugins import is_plugin, load_plugin
from ttrl.types import UserError

Extractor = Callable[[str], str | None]
"""From a completion's text to its answer; None abstains."""


def make_extractor(name: str) -> Extractor:
    """The extractor that ``answers.extract`` names.

    Raises:
        UserError: if there is none.
    """
    if is_plugin(name):
        user: Extractor = load_plugin(name, "answers.extract")
        return user
    if name == "boxed":
        return extract_answer
    raise UserError(f"answers.extract = {name!r} is unknown: expected FILE.py:FUNCTION or boxed")


# An escaped character is consumed whole, so that neither brace of `\{ \}` counts, while the brace
# of `\\{` (a line break, then a group) does.
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def extract_answer(text: str) -> str | None:
    r"""The answer in a completion: what its last complete ``\boxed{...}`` holds.

    ``\fbox{...}`` counts too. A box is complete if its braces balance, so a truncated last box
    leaves the word to an earlier complete one. Of nested boxes the innermost holds the answer.
    Linear in the length of ``text``.

    Returns:
        The content as written, without white space around it; None if there is no complete box,
        or if the last one holds nothing but white space, spacing commands or control characters.
        Never an empty string.
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
    answer = text[content].strip()
    return answer if canonical(answer) else None
