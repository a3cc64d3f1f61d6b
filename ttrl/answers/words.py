r"""Text is text: its letters are no product, its case and font do not matter, their order does.

A word is ``\text{...}`` in small letters, whoever wrote it: ``\textbf{Even}``, ``even`` and
``\mathrm{EVEN}`` are ``\text{even}``. Without ``\text`` around them, letters are a word if there
are three in a row, or two with a capital among them (``IV``, ``AB``, ``Na``), or they are one of
the short words of English (``no``); ``ab`` and ``xy`` are products, and one letter is a variable
or a choice.
"""

from __future__ import annotations

import re

from ttrl.answers.brackets import content

_PHRASE = re.compile(r"[^\W\d_](?:[^\W\d_]|[ .'-])*")
_WORDS = re.compile(
    r"[A-Za-z]{3}|[A-Z][A-Za-z]|[a-z][A-Z]|[^\W\d_A-Za-z]|"
    r"(?<![A-Za-z])(?:am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|ok|on|or|so|to|up|us|we)"
    r"(?![A-Za-z])"
)
_LETTER = re.compile(r"[A-Za-z]\.?")
_CHOICE = re.compile(
    r"\(?([A-Z])[):]|\(([A-Z])\)\.?|(?i:option|choice|answer)(?: is)? ?:? ?\(?([A-Z])\)?"
)


def choice(text: str) -> str:
    """Return the letter of a choice: ``(A)``, ``A)``, ``Option A``; other text unchanged."""
    match = _CHOICE.fullmatch(text)
    return match[match.lastindex or 0] if match else text


def word(text: str) -> str:
    r"""Spell a word or phrase canonically; return other text without ``\text``."""
    inside = content(text.removeprefix(r"\text"), "{", "}") if text.startswith(r"\text{") else None
    phrase = (text if inside is None else inside).strip('"` ')
    if not _PHRASE.fullmatch(phrase) or _LETTER.fullmatch(phrase):
        return text if inside is None else inside
    if inside is None and not _WORDS.search(phrase):
        return text
    if (letter := choice(phrase)) != phrase:
        return letter
    return rf"\text{{{phrase.rstrip('. ').casefold()}}}"
