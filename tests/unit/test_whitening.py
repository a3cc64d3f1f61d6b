"""Whitening against numbers worked out by hand, and against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttrl.credit.whitening import whiten


def test_mean_and_unbiased_variance_are_over_tokens() -> None:
    # 5 tokens: mean (3 * 1 + 2 * (-4)) / 5 = -1; squares 3 * 4 + 2 * 9 = 30, over 4: 7.5
    scale = math.sqrt(7.5 + 1e-8)
    whitened = whiten([(1.0, 1.0, 1.0), (), (-4.0, -4.0)])
    assert whitened == [(2 / scale,) * 3, (), (-3 / scale,) * 2]


def test_epsilon_is_added_to_the_variance() -> None:
    # mean 0, variance 2e-8 / 1: each is divided by sqrt(3e-8)
    (whitened,) = whiten([(1e-4, -1e-4)])
    assert whitened == pytest.approx((1 / math.sqrt(3), -1 / math.sqrt(3)), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1 / 3, 1e-300])
def test_equal_numbers_give_exact_zeros(value: float) -> None:
    assert whiten([(value,) * 3, (value,) * 7]) == [(0.0,) * 3, (0.0,) * 7]
    assert whiten([(value,)]) == [(0.0,)]
    assert whiten([(), ()]) == [(), ()]
    assert whiten([]) == []


numbers = st.lists(st.lists(st.floats(-10, 10).map(lambda x: round(x, 2)), max_size=9), max_size=9)


@given(numbers)
def test_as_torch_in_float64(values: list[list[float]]) -> None:
    flat = torch.tensor([x for sample in values for x in sample], dtype=torch.float64)
    whitened = whiten(values)
    assert [len(sample) for sample in whitened] == [len(sample) for sample in values]
    if len(flat) > 1:
        expected = (flat - flat.mean()) * torch.rsqrt(flat.var() + 1e-8)
        assert [x for sample in whitened for x in sample] == pytest.approx(
            expected.tolist(), abs=1e-9
        )


@given(numbers)
def test_the_order_of_the_samples_leaves_no_trace(values: list[list[float]]) -> None:
    assert whiten(values[::-1]) == whiten(values)[::-1]
