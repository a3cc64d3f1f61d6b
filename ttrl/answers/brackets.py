r"""Brackets that belong together, and what stands between them."""

from __future__ import annotations

import re

BRACKET = re.compile(
    r"(?P<open>[(\[{]|\\\{|\\begin(?![A-Za-z]))|(?P<close>[)\]}]|\\\}|\\end(?![A-Za-z]))"
    r"|(?P<separator>[,;]|=|<|>|\\(?:leq|geq|neq|approx|in|cup|cap|lor|land)(?![A-Za-z]))|\\."
)


def split(text: str, separators: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split a text at the separators that no bracket encloses; return parts and separators.

    The whole text is the only part if its brackets do not balance.
    """
    parts, found = [], []
    depth = start = 0
    for token in BRACKET.finditer(text):
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
    """Return what a pair of brackets around the whole text encloses; None without such a pair."""
    if not (text.startswith(opening) and text.endswith(closing)):
        return None
    depth = 0
    for token in BRACKET.finditer(text):
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        if depth == 0:
            closes = token.end() == len(text) and token.lastgroup == "close"
            return text[len(opening) : -len(closing)] if closes else None
    return None
