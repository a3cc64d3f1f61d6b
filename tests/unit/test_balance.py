"""Questions shared out over engines or ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.system.balance import balance


def test_the_longest_left_goes_to_whoever_has_least_to_do() -> None:
    # 7 | 6, then 5 to the 6, 4 to the 7, and 3 to the first of two with 11
    assert balance([3, 5, 7, 4, 6], 2) == [[2, 3, 0], [4, 1]]


def test_what_is_expected_to_be_equally_long_keeps_its_order() -> None:
    assert balance([1.0] * 5, 1) == [[0, 1, 2, 3, 4]]
    assert balance([1.0] * 5, 2) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (2, 5)])
def test_parts_may_be_empty(count: int, parts: int) -> None:
    shares = balance([1.0] * count, parts)
    assert sorted(map(len, shares)) == [0] * (parts - count) + [1] * count


@given(st.lists(st.floats(1, 4096), max_size=40), st.integers(1, 9))
def test_each_question_once_and_no_part_much_longer(tokens: list[float], parts: int) -> None:
    shares = balance(tokens, parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == list(range(len(tokens)))
    loads = [sum(tokens[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0) * (1 + 1e-9)
    for share in shares:
        assert [tokens[i] for i in share] == sorted((tokens[i] for i in share), reverse=True)
