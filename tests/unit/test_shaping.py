"""Rewards of answers in turns, worked out by hand."""

from __future__ import annotations

import pytest
from conversations import in_turns

from ttrl.rewards.shaping import shaped, shaped_rewards
from ttrl.settings.agents import AgentSettings
from ttrl.types import Turn, UserError

DEBATE = [Turn(t, a, 0, "debater") for t in range(3) for a in range(2)]
"""Two debaters, three rounds."""
PAID = (1, 0, 0, 1, 1, 1)
"""What their answers are worth: the first is right, then the second, then both."""
MIXTURE = [Turn(0, a, 0, "generator") for a in range(3)] + [Turn(1, 0, 0, "aggregator")]
CHAIN = [Turn(t, 0, 0, role) for t, role in enumerate(("generator", "verifier", "refiner"))]


def options(**changes: object) -> AgentSettings:
    return AgentSettings.model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, PAID),
        # Q of the second round is the mean of 1, 0; of the third, that of 1, 0, 0, 1.
        ({"shaping": "margin"}, (1, 0, -0.25, 1.25, 1.25, 1.25)),
        ({"shaping": "margin", "shaping_coef": 1.0}, (1, 0, -0.5, 1.5, 1.5, 1.5)),
        # A wrong answer costs (1 - Q) / 2, a right one earns Q / 2.
        ({"shaping": "quality"}, (1, 0, -0.25, 1.25, 1.25, 1.25)),
        ({"outcome_coef": 0.5}, (1.5, 0.5, 0.5, 1.5, 1.5, 1.5)),
        ({"shaping": "margin", "outcome_coef": 0.5}, (1.5, 0.5, 0.25, 1.75, 1.75, 1.75)),
    ],
)
def test_a_debate(changes: dict[str, object], expected: tuple[float, ...]) -> None:
    assert shaped(PAID, DEBATE, options(**changes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shaping", "right", "wrong"),
    [
        # One of three generators is right: Q = 1/3.
        ("margin", 1 + (1 - 1 / 3) / 2, -1 / 6),
        ("quality", 1 + 1 / 6, -(2 / 3) / 2),
    ],
)
def test_a_mixture_compares_the_aggregator_with_its_generators(
    shaping: str, right: float, wrong: float
) -> None:
    own = options(shaping=shaping)
    assert shaped((1, 0, 0, 1), MIXTURE, own) == pytest.approx((1, 0, 0, right))
    assert shaped((1, 0, 0, 0), MIXTURE, own) == pytest.approx((1, 0, 0, wrong))
    # All agree with each other: nothing is added by a margin, half by quality.
    assert shaped((1, 1, 1, 1), MIXTURE, own)[3] == (1.0 if shaping == "margin" else 1.5)


def test_a_chain_pays_what_comes_after_by_the_mean_before() -> None:
    # The verifier boxes nothing: 0. Q is 1 for it, and 1/2 for the refiner.
    assert shaped((1, 0, 1), CHAIN, options(shaping="margin")) == pytest.approx((1, -0.5, 1.25))
    assert shaped((1, 0, 1), CHAIN, options(shaping="quality")) == pytest.approx((1, 0, 1.25))
    # What comes out is the refiner's, and pays all three.
    with_outcome = options(shaping="quality", outcome_coef=0.5)
    assert shaped((0, 0, 1), CHAIN, with_outcome) == pytest.approx((0.5, 0.0, 1.5))


def test_an_outcome_of_others_is_the_mean_of_the_last_turn() -> None:
    turns = [Turn(0, 0, 0, "writer"), Turn(1, 0, 0, "critic"), Turn(1, 1, 0, "critic")]
    assert shaped((0, 1, 0), turns, options(outcome_coef=1.0)) == pytest.approx((0.5, 2, 0))


def test_trajectories_know_nothing_of_each_other() -> None:
    group = in_turns((0, 0, 0, ""), (1, 0, 0, ""), (0, 1, 0, ""), (1, 1, 0, ""))
    found = shaped_rewards(group, (1, 0, 0, 1), options(shaping="margin"))
    assert found == pytest.approx((1, 0, -0.5, 1.5))
    assert shaped_rewards(group, (1, 0, 0, 1), options()) is None


def test_rewards_that_are_no_probabilities_have_no_quality() -> None:
    with pytest.raises(UserError, match=r'agents.shaping = "quality": the estimator paid -1, exp'):
        shaped((1, -1, 0, 0), MIXTURE, options(shaping="quality"))
    assert shaped((1, -1, 0, 0), MIXTURE, options(shaping="margin"))[3] == 0
