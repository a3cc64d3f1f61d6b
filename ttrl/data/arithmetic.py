r"""The embedded task: additions worked out column by column, in four levels.

A question is ``What is 47 + 85?`` and its worked answer

    7+5=12
    4+8+1=13
    \boxed{132}

Level n adds two numbers of n + 1 digits. Everything is generated from fixed seeds, so the
questions are the same on every machine. `question_rows` yields rows as a file would hold them;
they pass through the same loader, prompts and grading as real data.

`worked_answer` can slip: it writes a wrong column, and carries on from it. The base model learns
from such answers (`scripts/build_tiny_base.py`), which gives it what a base language model has:
it knows the method, and is often wrong.
"""

from __future__ import annotations

import random

LEVELS = (1, 2, 3, 4)
QUESTIONS_PER_LEVEL = 32
SPLITS = ("train", "held_out")


def question_rows(split: str) -> list[dict[str, str | int]]:
    """Return the questions of a split: rows with prompt, answer, id and level, level by level.

    Args:
        split: "train" or "held_out"; no question is in both.
    """
    rows: list[dict[str, str | int]] = []
    for level in LEVELS:
        for i, (a, b) in enumerate(_operands(level)[split]):
            row_id = f"{split}-{level}-{i}"
            rows.append(
                {"id": row_id, "prompt": question(a, b), "answer": str(a + b), "level": level}
            )
    return rows


def reserved() -> frozenset[tuple[int, int]]:
    """Return the operands of all questions, in both orders; the base model's corpus lacks them."""
    pairs = [pair for level in LEVELS for split in SPLITS for pair in _operands(level)[split]]
    return frozenset(pairs) | frozenset((b, a) for a, b in pairs)


def question(a: int, b: int) -> str:
    """Write the text of a question."""
    return f"What is {a} + {b}?"


def operand(rng: random.Random, level: int) -> int:
    """Draw a number of ``level + 1`` digits."""
    return rng.randrange(10**level, 10 ** (level + 1))


def worked_answer(a: int, b: int, rng: random.Random, slip: float) -> str:
    """Write the answer to ``a + b`` column by column; each slips with probability ``slip``.

    Both numbers have the same number of digits. A slip forgets the carry that came in; without
    one, it is one too many or one too few.
    """
    lines, digits, carry = [], "", 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        written = int(x) + int(y) + carry
        terms = f"{x}+{y}" + ("+1" if carry else "")
        if rng.random() < slip:
            written += -1 if carry else rng.choice((-1, 1) if written else (1,))
        lines.append(f"{terms}={written}")
        digits = str(written % 10) + digits
        carry = written // 10
    total = ("1" if carry else "") + digits
    return "\n".join([*lines, f"\\boxed{{{total}}}"])


def _operands(level: int) -> dict[str, list[tuple[int, int]]]:
    """Draw distinct operands of a level's questions, by split."""
    rng = random.Random(f"ttrl arithmetic {level}")
    pairs: list[tuple[int, int]] = []
    seen: set[frozenset[int]] = set()
    while len(pairs) < QUESTIONS_PER_LEVEL * len(SPLITS):
        pair = operand(rng, level), operand(rng, level)
        if frozenset(pair) not in seen:
            seen.add(frozenset(pair))
            pairs.append(pair)
    return {s: pairs[i :: len(SPLITS)] for i, s in enumerate(SPLITS)}
