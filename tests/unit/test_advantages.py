"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.credit.advantages import GroupAdvantages, group_advantages
from ttrl.types import UserError


def test_mean_std_uses_the_sample_standard_deviation() -> None:
    # mean 1/4; squares sum to 3/4; over G - 1 = 3: variance 1/4, standard deviation 1/2
    assert group_advantages((1.0, 0.0, 0.0, 0.0), "mean_std") == pytest.approx(
        (0.75 / 0.500001, -0.25 / 0.500001, -0.25 / 0.500001, -0.25 / 0.500001), rel=1e-12
    )


def test_mean_only() -> None:
    assert group_advantages((1.0, 0.0, 0.0, 0.0), "mean") == (0.75, -0.25, -0.25, -0.25)
    assert group_advantages((1.0, 0.5, -1.5), "mean") == (1.0, 0.5, -1.5)


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    # 1 - 0, and 0 - 1/3; then 1 - (-1/2), 1/2 - 0 and -3/2 - 3/4
    assert group_advantages((1.0, 0.0, 0.0, 0.0), "rloo") == pytest.approx(
        (1, -1 / 3, -1 / 3, -1 / 3)
    )
    assert group_advantages((1.0, 0.5, -1.5), "rloo") == pytest.approx((1.5, 0.75, -2.25))


def test_remax_subtracts_the_greedy_answer_s_reward() -> None:
    assert group_advantages((1.0, 0.0, 1.0), "remax", greedy=1.0) == (0.0, -1.0, 0.0)
    assert group_advantages((1.0, 1.0), "remax", greedy=0.0) == (1.0, 1.0)
    assert group_advantages((0.0, 0.0), "remax", greedy=0.0) == (0.0, 0.0)
    with pytest.raises(ValueError, match="there is none"):
        group_advantages((1.0, 0.0), "remax")


def test_none_takes_the_rewards_as_they_are() -> None:
    assert group_advantages((1.0, 0.0, -1.0), "none") == (1.0, 0.0, -1.0)
    assert group_advantages([-1.0, -1.0], "none") == (-1.0, -1.0)


def test_opo_subtracts_the_mean_over_tokens() -> None:
    # Σ len·r / Σ len = (1 * 1 + 2 * 0 + 5 * 1) / 8 = 0.75
    assert group_advantages((1.0, 0.0, 1.0), "opo", (1, 2, 5)) == (0.25, -0.75, 0.25)
    assert group_advantages((1.0, 0.5, -1.5), "opo", (4, 4, 4)) == (1.0, 0.5, -1.5)
    with pytest.raises(ValueError, match="zip"):
        group_advantages((1.0, 0.0), "opo")


def test_pass_at_k_pays_the_best_for_its_lead() -> None:
    # mean 1/2; squares 1/4 + 1/4 + 0 over 2: variance 1/4; lead 1 - 1/2
    assert group_advantages((0.0, 1.0, 0.5), "pass_at_k") == pytest.approx(
        (0, 0.5 / 0.500001, 0), rel=1e-12
    )
    assert group_advantages((1.0, 0.0, 1.0), "pass_at_k") == (0.0, 0.0, 0.0)  # no lead


def test_max_rl_divides_by_the_mean() -> None:
    # mean 1/4: (1 - 1/4) / (1/4) = 3; mean 1: (2.5 - 1), (0.5 - 1), -1
    assert group_advantages((1.0, 0.0, 0.0, 0.0), "max_rl") == (3.0, -1.0, -1.0, -1.0)
    assert group_advantages((2.5, 0.5, 0.0), "max_rl") == (1.5, -0.5, -1.0)


@pytest.mark.parametrize("rewards_G", [(1.0, -0.5), (-1.0, -1.0)])
def test_max_rl_refuses_rewards_below_zero(rewards_G: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"got a reward of -[01]\.[05], expected none below 0"):
        group_advantages(rewards_G, "max_rl")


@pytest.mark.parametrize("kind", ["mean_std", "mean", "rloo", "opo", "pass_at_k", "max_rl"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e-300])
@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_equal_rewards_give_exact_zeros(kind: GroupAdvantages, reward: float, size: int) -> None:
    lengths = range(1, size + 1)
    assert group_advantages((reward,) * size, kind, lengths) == (0.0,) * size
    if kind != "max_rl":
        assert group_advantages((-reward,) * size, kind, lengths) == (0.0,) * size


rewards = st.lists(st.floats(-1, 1).map(lambda r: round(r, 2)), min_size=2, max_size=64)


@given(rewards, st.sampled_from(["mean_std", "mean", "rloo"]))
def test_sum_to_zero_and_keep_the_order(rewards_G: list[float], kind: GroupAdvantages) -> None:
    advantages_G = group_advantages(rewards_G, kind)
    assert math.fsum(advantages_G) == pytest.approx(0, abs=1e-9)
    for r, a in zip(rewards_G, advantages_G, strict=True):
        for s, b in zip(rewards_G, advantages_G, strict=True):
            assert (r < s) == (a < b)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 99)), min_size=1, max_size=64))
def test_opo_sums_to_zero_over_tokens(rewards: list[tuple[float, int]]) -> None:
    rewards_G, lengths_G = zip(*rewards, strict=True)
    advantages_G = group_advantages(rewards_G, "opo", lengths_G)
    weighted = [n * a for n, a in zip(lengths_G, advantages_G, strict=True)]
    assert math.fsum(weighted) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 63))
def test_mean_std_gives_a_binary_group_unit_variance(winners: int) -> None:
    advantages_G = group_advantages((1.0,) * winners + (0.0,) * (64 - winners), "mean_std")
    assert sum(a * a for a in advantages_G) / 63 == pytest.approx(1, rel=1e-4)
