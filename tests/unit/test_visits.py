"""TTRL-Guard: what a question's history does to its weight, its advantages, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from groups import group, voted

from ttrl.rewards import make_estimator
from ttrl.types import Estimate, PastVote


def visit(
    answers: tuple[str, ...], past: str = "", ratio: float = 0.5, **options: float
) -> Estimate:
    """The estimate after visits in which the label changed (x) or not (-); "x" at last: now."""
    history = tuple(PastVote(i, "7", ratio, c == "x") for i, c in enumerate(past[:-1], start=1))
    of = replace(voted(group(*answers), history), changed=past[-1:] == "x")
    return make_estimator("ttrl_guard", options).estimate(of)


SEVENS = ("7", "7", "7", "8")
"""A majority ratio of 0.75."""


def test_a_first_visit_is_grpo() -> None:
    found = visit(SEVENS)
    assert found.rewards_G == (1.0, 1.0, 1.0, 0.0)
    assert found.advantages_G == pytest.approx((0.5, 0.5, 0.5, -1.5), rel=1e-5)
    assert found.weight == 1.0 and found.keep_G == (True,) * 4
    assert found.metrics == {"flips": 0.0, "left_out": 0.0}


@pytest.mark.parametrize(
    ("past", "ratio", "weight"),
    [
        ("----", 0.5, 1.0),  # four visits: too few to be judged by
        ("-----", 0.5, 1.0),  # the mean of the last five is 0.55
        ("-----", 0.6, 0.85),  # 0.63, and never changed
        ("---------", 0.65, 0.85),  # the fifth time
        ("----------", 0.65, 1.0),  # no more than five times
        ("--x--", 0.4, 1 - 0.25 / 2),  # F = 1/4
        ("-xx", 0.5, (1 - 1.0 / 2) * 0.7),  # F = 1, and confident now
        ("-xx--", 0.4, (1 - 0.5 / 2) * 0.7),  # F = 1/2
    ],
)
def test_the_weight_of_a_question(past: str, ratio: float, weight: float) -> None:
    assert visit(SEVENS, past, ratio, skip=0.0).weight == pytest.approx(weight)


def test_an_unsure_majority_is_not_weighed_down_for_its_share() -> None:
    assert visit(("7", "7", "8", "9"), "-xx").weight == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("past", "beta"),
    [("-x", 0.3), ("-x--", 0.3), ("-x---", 0.0), ("--------x", 0.3 * (1 / 8) / 0.3)],
)
def test_minorities_get_a_bonus_after_a_change(past: str, beta: float) -> None:
    """One of four votes is a quarter, and |A| is 3/4 on average; one of eight is too few."""
    found = visit(SEVENS, past, skip=0.0)
    expected = (0.5, 0.5, 0.5, -1.5 + beta * 0.25 * 0.75)
    assert found.advantages_G == pytest.approx(expected, rel=1e-5)
    few = visit(("7",) * 7 + ("8",), past, skip=0.0).advantages_G
    assert few == visit(("7",) * 7 + ("8",)).advantages_G
    silent = visit(("7", "7", "7", None), past, skip=0.0).advantages_G  # no answer, no minority
    assert silent == visit(("7", "7", "7", None)).advantages_G


def test_a_confident_question_that_has_changed_is_left_out() -> None:
    """With certainty, never, or in seven of ten visits; the stream of random numbers decides."""
    assert visit(SEVENS, "-x---", 0.6, skip=1.0).keep_G == (False,) * 4
    assert visit(SEVENS, "-x---", 0.6, skip=1.0).metrics["left_out"] == 1.0
    assert visit(SEVENS, "-x---", 0.6, skip=0.0).keep_G == (True,) * 4
    assert visit(SEVENS, "-----", 0.6, skip=1.0).keep_G == (True,) * 4
    assert visit(SEVENS, "-x---", 0.5, skip=1.0).keep_G == (True,) * 4
    assert visit(SEVENS, "-x--", 0.6, skip=1.0).keep_G == (True,) * 4
    drawn = 0
    for step in range(400):
        history = tuple(PastVote(i, "7", 0.6, i == 2) for i in range(1, 5))
        of = voted(group(*SEVENS), history, step)
        drawn += not make_estimator("ttrl_guard").estimate(of).keep_G[0]
    assert 0.62 < drawn / 400 < 0.78


def test_nobody_answers() -> None:
    found = visit((None, None), "-x")
    assert found.rewards_G == found.advantages_G == (0.0, 0.0)
