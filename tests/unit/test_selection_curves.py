"""Curves of accuracy: against exact counts, and the bootstrap against all its samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from math import comb

import numpy as np
import pytest
from results import result
from test_selection_rules import candidates

from ttrl.evaluation.metrics import maj_at_k
from ttrl.report.results import EvaluationResult
from ttrl.report.selection import Curve, Interval, Point, Selection, selection_tables
from ttrl.selection.candidates import Candidates
from ttrl.selection.curves import Subsets
from ttrl.selection.rules import RULES
from ttrl.selection.stopping import Stopped, stopped_by_vote
from ttrl.settings import SelectionSettings

SAID = (["7"] * 5 + ["8"] * 4 + [None], ["7"] * 2 + ["9"] * 4 + ["8"] * 4)


def named(name: str, answers: Sequence[str | None], tokens: Sequence[float]) -> Candidates:
    found = candidates(answers)
    return Candidates(**{**vars(found), "question": name, "tokens_N": np.array(tokens)})


def subsets(draws: int = 4000, **scores: Sequence[float]) -> Subsets:
    questions = [named(f"q{i}", said, [4.0, 6.0] * 5) for i, said in enumerate(SAID)]
    for name, values in scores.items():
        questions = [c.scored(name, np.array(values)) for c in questions]
    return Subsets(questions, SelectionSettings(draws=draws), seed=1)


def test_the_majority_of_subsets_is_maj_at_k() -> None:
    found = subsets()
    for n in (1, 3, 6, 10):
        exact = [maj_at_k(said, "7", n) for said in SAID]
        tolerance = 0.03 if n < 10 else 0.0  # four standard errors of 4000 draws
        assert found.right(RULES["majority"], n) == pytest.approx(exact, abs=tolerance)
    assert found.right(RULES["majority"], 10).tolist() == [1.0, 0.0]


def test_the_best_of_subsets_by_counting() -> None:
    """The answer of rank r of 10 is the best of C(10 - r, n - 1) of the C(10, n) subsets."""
    scores = [float(i) for i in range(10)]  # the last answer is the best
    found = subsets(reward=scores)
    said = SAID[1]
    for n in (1, 2, 5):
        exact = sum(comb(i, n - 1) for i in range(10) if said[i] == "7") / comb(10, n)
        assert found.right(RULES["best-of-n"], n)[1] == pytest.approx(exact, abs=0.03)


def test_subsets_are_the_same_for_every_rule_and_on_every_machine() -> None:
    equal = subsets(draws=50, reward=[1.0] * 10)
    for n in (1, 2, 5, 10):
        assert np.array_equal(equal.right(RULES["majority"], n), equal.right(RULES["weighted"], n))
    again = subsets(draws=50).right(RULES["majority"], 5)
    assert np.array_equal(again, equal.right(RULES["majority"], 5))


def test_a_point_is_compared_with_the_majority_at_equal_tokens() -> None:
    """Answers have 5 tokens each: 22 pay for 4 of them, 500 for all ten."""
    found = subsets(draws=100)
    point = found.point(np.array([1.0, 0.0]), 2, np.array([20.0, 24.0]))
    majority = found.right(RULES["majority"], 4)
    assert (point.tokens, point.majority_answers) == (22.0, 4)
    assert point.gain.value == pytest.approx(0.5 - majority.mean())
    assert found.point(np.array([1.0, 0.0]), 2, np.array([500.0] * 2)).majority_answers == 10
    assert found.point(np.array([1.0, 0.0]), 2, np.array([1.0] * 2)).majority_answers == 1
    curve = found.curve(RULES["majority"], (1, 4, 10))
    assert [p.tokens for p in curve.points] == [5.0, 20.0, 50.0]
    assert [p.gain.value for p in curve.points] == [0.0] * 3


def test_an_interval_is_that_of_all_resamples() -> None:
    """Of three questions there are 27 resamples; the lowest is 1 of 27, more than 2.5 %."""
    values = np.array([0.1, 0.5, 0.9])
    questions = [named(f"q{i}", ["7"], [1.0]) for i in range(3)]
    found = Subsets(questions, SelectionSettings(), seed=1).interval(values)
    means = sorted(np.mean(draw) for draw in product(values, repeat=3))
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    alone = Subsets(questions[:1], SelectionSettings(), seed=1).interval(values[:1])
    assert alone == Interval(0.1, None, None)


def test_a_hundred_questions_have_the_interval_of_the_central_limit() -> None:
    values = np.array([0.0, 1.0] * 50)
    questions = [named(f"q{i}", ["7"], [1.0]) for i in range(100)]
    found = Subsets(questions, SelectionSettings(), seed=1).interval(values)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_stops_are_means_over_orders() -> None:
    found = subsets(draws=10)
    one = found.stops("one", lambda c, order_N: Stopped(int(c.class_N[order_N[0]]), 1, 5.0))
    (point,) = one.points
    assert (point.answers, point.tokens) == (1.0, 5.0)
    assert point.accuracy.value == pytest.approx(found.right(RULES["majority"], 1).mean())
    (vote,) = found.stops("vote", stopped_by_vote).points
    assert vote.accuracy.value == 0.5
    assert 7 <= vote.answers <= 10
    assert vote.tokens == pytest.approx(5 * vote.answers, rel=0.05)


# ---------------------------------------------------------------------------------------------
# Written down, and shown

POINT = Point(2, 10.0, Interval(0.5, 0.25, 0.75), 2, Interval(0.125, -0.01, 0.25))
SELECTION = Selection(
    answers=2,
    tokens_per_answer=5.0,
    curves=(Curve("weighted", (Point(1, 5.0, POINT.accuracy, 1, POINT.gain), POINT)),),
    stops=(Curve("vote", (Point(1.5, 7.5, POINT.accuracy, 1, Interval(0.0, None, None)),)),),
    notes=("A note.",),
)


def test_a_selection_is_written_and_read_with_its_result() -> None:
    plain = result("m", [0.5, 1.0])
    assert "selection" not in plain.as_json()
    chosen = replace(plain, selection=SELECTION)
    assert EvaluationResult.of_json(json.loads(json.dumps(chosen.as_json()))) == chosen
    assert Selection.of_json(json.loads(json.dumps(asdict(SELECTION)))) == SELECTION


def test_the_tables_by_hand() -> None:
    first, second = selection_tables("m on d", SELECTION)
    assert first.columns == ("", "1", "2")
    assert first.rows == (("weighted", "50.0", "50.0"),)
    assert first.notes == ("An answer has 5.0 tokens.", "A note.")
    assert second.rows == (
        ("weighted", "10", "50.0", "25.0-75.0", "2", "+12.5", "-1.0 to +25.0"),
        ("vote, early", "8", "50.0", "25.0-75.0", "1", "+0.0", ""),
    )
    assert second.notes[1] == (
        "vote, early: 1.5 of 2 answers are begun, and 25.0 % of the tokens saved."
    )
