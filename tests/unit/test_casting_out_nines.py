"""The example verifier: right answers pass, slips are caught, junk is no error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ttrl.data.arithmetic import question, question_rows, worked_answer
from ttrl.settings.plugins import load_plugin

FILE = Path(__file__).parents[2] / "bench" / "verifiers" / "casting_out_nines.py"
check = load_plugin(f"{FILE}:check", "test")


def test_every_right_answer_passes() -> None:
    for row in question_rows("train"):
        a, b = (int(word.strip("?")) for word in str(row["prompt"]).split() if word[0].isdigit())
        text = worked_answer(a, b, random.Random(0), slip=0)
        assert check(f"user: {row['prompt']}\n", text) is True


def test_answers_that_are_off_fail_unless_by_nines() -> None:
    # 47 + 85 = 132
    for answer, passes in ((132, True), (133, False), (131, False), (122, False), (123, True)):
        assert check(question(47, 85), f"\\boxed{{{answer}}}") is passes


def test_the_last_question_and_the_last_box_count() -> None:
    worked = "What is 1 + 1?\n\\boxed{2}\nWhat is 47 + 85?"
    assert check(worked, "\\boxed{5} no, \\boxed{132}")
    assert not check(worked, "\\boxed{132} no, \\boxed{5}")


@pytest.mark.parametrize(
    "text", ["", "132", "\\boxed{", "\\boxed{}", "\\boxed{1.5}", "\\boxed{-3}", "\\boxed{\uff11}"]
)
def test_junk_is_not_verified(text: str) -> None:
    assert check(question(47, 85), text) is False
    assert check("Name a prime.", "\\boxed{6}") is False


def test_long_junk_takes_no_time() -> None:
    assert check(question(47, 85), "\\boxed{" * 100_000 + "1" * 100_000) is False
