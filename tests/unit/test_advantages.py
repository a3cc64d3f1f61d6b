"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.credit.advantages import AdvantageKind, group_advantages


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


def test_none_takes_the_rewards_as_they_are() -> None:
    assert group_advantages((1.0, 0.0, -1.0), "none") == (1.0, 0.0, -1.0)
    assert group_advantages([-1.0, -1.0], "none") == (-1.0, -1.0)


@pytest.mark.parametrize("kind", ["mean_std", "mean", "rloo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3, 1e-300])
@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_equal_rewards_give_exact_zeros(kind: AdvantageKind, reward: float, size: int) -> None:
    assert group_advantages((reward,) * size, kind) == (0.0,) * size


rewards = st.lists(st.floats(-1, 1).map(lambda r: round(r, 2)), min_size=2, max_size=64)


@given(rewards, st.sampled_from(["mean_std", "mean", "rloo"]))
def test_sum_to_zero_and_keep_the_order(rewards_G: list[float], kind: AdvantageKind) -> None:
    advantages_G = group_advantages(rewards_G, kind)
    assert math.fsum(advantages_G) == pytest.approx(0, abs=1e-9)
    for r, a in zip(rewards_G, advantages_G, strict=True):
        for s, b in zip(rewards_G, advantages_G, strict=True):
            assert (r < s) == (a < b)


@given(st.integers(1, 63))
def test_mean_std_gives_a_binary_group_unit_variance(winners: int) -> None:
    advantages_G = group_advantages((1.0,) * winners + (0.0,) * (64 - winners), "mean_std")
    assert sum(a * a for a in advantages_G) / 63 == pytest.approx(1, rel=1e-4)
