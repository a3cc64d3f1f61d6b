"""What a search is credited with: the best-scored solution from which an answer can be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ttrl.answers import default_grader, extract_answer
from ttrl.scaling import Measuring
from ttrl.scaling.methods import _right
from ttrl.search import Found, Solution
from ttrl.types import Question

RIGHT, WRONG, SILENT = r"\boxed{7}", r"\boxed{8}", "so it goes"
FIRST = r"\boxed{1}"


@pytest.mark.parametrize(
    ("written", "credit"),
    [
        (((RIGHT, 0.5), (WRONG, 0.9)), 0.0),
        (((WRONG, 0.5), (RIGHT, 0.9)), 1.0),
        (((SILENT, 0.95), (WRONG, 0.1), (RIGHT, 0.9)), 1.0),
        # Of equal scores 7 is chosen, as in a tied vote, whichever ended first.
        (((RIGHT, 0.5), (WRONG, 0.5)), 1.0),
        (((WRONG, 0.5), (RIGHT, 0.5)), 1.0),
        (((RIGHT, 0.5), (FIRST, 0.5)), 0.0),
        (((SILENT, 0.9),), 0.0),
        ((), 0.0),
    ],
)
def test_the_best_solution_with_an_answer_counts(
    written: tuple[tuple[str, float], ...], credit: float
) -> None:
    key = SimpleNamespace(answers={"q": "7"})
    asked = SimpleNamespace(key=key)
    evaluation = SimpleNamespace(extract=extract_answer, grader=default_grader(), asked=asked)
    on = Measuring(cast(Any, evaluation), pytest.fail, None, [4], 4, cast(Any, None))
    solutions = tuple(Solution(text, score, 3, False) for text, score in written)
    assert _right(on, Found(Question("q", "", (1,)), solutions, 9, 9)) == credit
