"""The embedded task: questions are right, worked answers are what the docstring says."""

from __future__ import annotations

import random
import re

import pytest

from ttrl.answers import extract_answer
from ttrl.data import arithmetic


@pytest.mark.parametrize("split", arithmetic.SPLITS)
def test_questions(split: str) -> None:
    rows = arithmetic.question_rows(split)
    assert len(rows) == 4 * 32
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        a, b = map(int, re.findall(r"\d+", str(row["prompt"])))
        assert row["answer"] == str(a + b)
        assert len(str(a)) == len(str(b)) == row["level"] + 1


def test_splits_share_nothing_and_are_the_same_everywhere() -> None:
    train, held_out = (
        {row["prompt"] for row in arithmetic.question_rows(s)} for s in arithmetic.SPLITS
    )
    assert not train & held_out
    first = arithmetic.question_rows("train")[0]
    assert first == {"id": "train-1-0", "prompt": "What is 69 + 40?", "answer": "109", "level": 1}


def test_reserved_holds_every_question_in_both_orders() -> None:
    reserved = arithmetic.reserved()
    for split in arithmetic.SPLITS:
        for row in arithmetic.question_rows(split):
            a, b = map(int, re.findall(r"\d+", str(row["prompt"])))
            assert (a, b) in reserved
            assert (b, a) in reserved


def test_worked_answer_by_hand() -> None:
    answer = arithmetic.worked_answer(47, 85, random.Random(0), slip=0.0)
    assert answer == "7+5=12\n4+8+1=13\n\\boxed{132}"


def test_without_slips_every_answer_is_right() -> None:
    rng = random.Random(1)
    for level in arithmetic.LEVELS:
        for _ in range(50):
            a, b = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
            assert extract_answer(arithmetic.worked_answer(a, b, rng, 0.0)) == str(a + b)


def test_slips_are_as_frequent_as_asked_and_of_the_two_kinds() -> None:
    rng = random.Random(2)
    slipped = columns = 0
    for _ in range(2000):
        a, b = arithmetic.operand(rng, 3), arithmetic.operand(rng, 3)
        for line in arithmetic.worked_answer(a, b, rng, 0.25).splitlines()[:-1]:
            terms, _, written = line.partition("=")
            error = int(written) - sum(map(int, terms.split("+")))
            columns += 1
            slipped += error != 0
            # With a carry (three terms) it is forgotten; without one, one too many or too few.
            assert error in ((-1, 0) if terms.count("+") == 2 else (-1, 0, 1))
    assert slipped / columns == pytest.approx(0.25, abs=0.02)
