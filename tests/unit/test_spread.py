"""Questions shared out over engines or ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.rollout.spread import spread
from ttrl.types import Question


def questions(*prompt_lengths: int) -> list[Question]:
    return [Question(f"q{i}", "", (0,) * n) for i, n in enumerate(prompt_lengths)]


def expect(*tokens: float) -> dict[str, float]:
    return {f"q{i}": n for i, n in enumerate(tokens)}


def test_the_longest_left_goes_to_whoever_has_least_to_do() -> None:
    shares = spread(questions(1, 1, 1, 1, 1), expect(3, 5, 7, 4, 6), 2)
    # 7 | 6, then 5 to the 6, 4 to the 7, and 3 to the first of two with 11
    assert shares == [[2, 3, 0], [4, 1]]


def test_without_expectations_longer_prompts_go_first_and_all_count_the_same() -> None:
    assert spread(questions(2, 9, 4, 4), {}, 2) == [[1, 3], [2, 0]]


def test_a_question_not_seen_yet_counts_as_the_mean_of_the_others() -> None:
    # 10, then the unknown one as 6, then 2 to the 6
    assert spread(questions(1, 1, 1), {"q0": 2.0, "q2": 10.0}, 2) == [[2], [1, 0]]


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (2, 5)])
def test_parts_may_be_empty(count: int, parts: int) -> None:
    shares = spread(questions(*[1] * count), {}, parts)
    assert sorted(map(len, shares)) == [0] * (parts - count) + [1] * count


@given(st.lists(st.tuples(st.floats(1, 4096), st.integers(1, 99)), max_size=40), st.integers(1, 9))
def test_each_question_once_and_no_part_much_longer(
    sizes: list[tuple[float, int]], parts: int
) -> None:
    asked = questions(*(prompt for _, prompt in sizes))
    tokens = [t for t, _ in sizes]
    shares = spread(asked, expect(*tokens), parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == list(range(len(asked)))
    loads = [sum(tokens[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0) * (1 + 1e-9)
    for share in shares:
        assert [tokens[i] for i in share] == sorted((tokens[i] for i in share), reverse=True)
