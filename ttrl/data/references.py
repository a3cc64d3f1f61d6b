r"""The reference answer in a field that holds a worked solution, as of GSM8K and MATH.

A reference is compared with what a completion answers, so a solution must be read as a completion
is: what stands in its box, or behind its ``####``.
"""

from __future__ import annotations

import re

from ttrl.answers import extract_answer

READ_FROM = r"\boxed{...}, or the end of a line that begins with ####"

_MARKED = re.compile(r"^[ \t]*####(.*)$", re.MULTILINE)
_NO_WORDS = re.compile(r"\$[^$]*\$|\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,}(?![A-Za-z])")
WORDS = 3
"""So many words outside of mathematics look like a sentence, not a value."""
SHOWN = 3
"""Examples of each kind that are shown."""


def read_reference(text: str) -> str | None:
    """Return the answer that an answer field gives.

    Returns:
        The content of the last box, or the one text behind ``####``; the field as it is if it has
        neither; None if it has several of the second kind, or both and they differ.
    """
    boxed = extract_answer(text)
    lines = [line.strip() for line in _MARKED.findall(text)]
    marked = {extract_answer(line) or line for line in lines if line}
    found = marked | ({boxed} if boxed is not None else set())
    if not found:
        return text
    return found.pop() if len(found) == 1 else None


def _is_prose(text: str) -> bool:
    """Say whether a text is more an explanation than a value, so that no answer agrees with it."""
    return len(_WORD.findall(_NO_WORDS.sub(" ", text))) >= WORDS


def solutions(source: str, written: dict[str, str], answers: dict[str, str]) -> list[str]:
    """Say what was made of answer fields that hold more than an answer."""
    remarks = []
    read = [i for i, answer in answers.items() if answer != written[i]]
    if read:
        shown = "; ".join(f"...{written[i][-40:]!r} -> {answers[i]!r}" for i in read[:SHOWN])
        remarks.append(
            f"{source}: {len(read)} of {len(answers)} answers were read out of a solution "
            f"({READ_FROM}): {shown}"
        )
    prose = [i for i, answer in answers.items() if _is_prose(answer)]
    if prose:
        shown = "; ".join(f"{i!r}: {answers[i][:60]!r}" for i in prose[:SHOWN])
        remarks.append(
            f"warning: {source}: {len(prose)} of {len(answers)} answers look like sentences, "
            f"without {READ_FROM}; a completion is right only if it answers the same: {shown}. "
            "Name another data.answer_field, or put the answers alone into one"
        )
    return remarks
