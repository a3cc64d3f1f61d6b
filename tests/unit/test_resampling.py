"""Which questions give their place to further ones, and which take it."""

from __future__ import annotations

from dataclasses import replace

import groups
import pytest
from groups import group

from ttrl.rollout.resampling import Rollout, has_signal, rounds_of
from ttrl.types import CompletionGroup, Estimate, Question

UNANIMOUS, SPLIT = ("7", "7.0"), ("7", "8")


def answered(*useful: bool, first: int = 0) -> tuple[list[CompletionGroup], list[Estimate]]:
    """Groups named by their number, of which some are split."""
    voted = [group(*(SPLIT if u else UNANIMOUS), id=str(first + i)) for i, u in enumerate(useful)]
    return voted, [groups.estimate(of) for of in voted]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(("7", "8"), True), (("7", "7.0"), False), ((None, None), False), (("7", None), True)],
)
def test_a_vote_has_a_signal_unless_all_agree_or_nobody_answers(
    answers: tuple[str | None, ...], expected: bool
) -> None:
    assert has_signal(groups.estimate(group(*answers))) is expected


def test_an_estimator_s_own_advantages_and_weight_say_it() -> None:
    split, same = (groups.estimate(group(*answers)) for answers in (SPLIT, UNANIMOUS))
    assert not has_signal(replace(split, weight=0.0))
    assert not has_signal(replace(split, advantages_G=(0.0, 0.0)))
    assert has_signal(replace(same, advantages_G=(1.0, 1.0)))
    assert not has_signal(replace(same, advantages_G=(0.0, -1.0), keep_G=(True, False)))
    assert has_signal(replace(same, advantages_G=(0.0, -1.0), keep_G=(False, True)))


def test_further_questions_take_places_in_order() -> None:
    rollout = Rollout()
    rollout.add(*answered(True, False, False, False))
    assert (rollout.batch, rollout.open) == ([0, 1, 2, 3], [1, 2, 3])
    rollout.add(*answered(False, True, False, first=4), further=True)
    assert (rollout.batch, rollout.open) == ([0, 5, 2, 3], [2, 3])
    assert rollout.metrics() == {
        "rollout/questions": 7.0,
        "rollout/replaced": 1.0,
        "rollout/unfilled": 2.0,
    }
    rollout.add(*answered(True, True, first=7), further=True)
    assert (rollout.batch, rollout.open) == ([0, 5, 7, 8], [])
    assert [g.question.id for g in rollout.groups] == [str(i) for i in range(9)]
    trained = rollout.chosen([[0, 1], [0], [1], []])
    assert trained == [[0, 1], [], [], [], [], [0], [], [1], []]


class Asked:
    """Further questions from a list, as a source gives them."""

    def __init__(self, count: int) -> None:
        self.all = [Question(str(i), "", ()) for i in range(4, 4 + count)]
        self.calls: list[tuple[int, int]] = []

    def further(self, first: int, count: int) -> list[Question]:
        self.calls.append((first, count))
        return self.all[first : first + count]


def sampled(source: Asked, rounds: int, *useful: bool) -> list[list[str]]:
    """The ids that are asked in each round, where these answers come, one after the other."""
    own, rollout, outcomes = [Question(str(i), "", ()) for i in range(4)], Rollout(), list(useful)
    asked = []
    for questions in rounds_of(own, source.further, rollout, rounds):
        asked.append([q.id for q in questions])
        here = [outcomes.pop(0) for _ in questions]
        rollout.add(*answered(*here, first=len(rollout.groups)), further=questions is not own)
    assert not outcomes
    return asked


def test_as_many_are_asked_as_are_open_and_never_again() -> None:
    source = Asked(99)
    found = sampled(source, 3, True, False, False, True, False, True, False, True)
    assert found == [["0", "1", "2", "3"], ["4", "5"], ["6"], ["7"]]
    assert source.calls == [(0, 2), (2, 1), (3, 1)]


def test_rounds_end_when_they_are_over_the_batch_is_full_or_nothing_is_left() -> None:
    split, same = [True] * 4, [False] * 4
    assert len(sampled(Asked(99), 5, *split)) == 1
    assert len(sampled(Asked(99), 0, *same)) == 1
    assert len(sampled(Asked(99), 2, *same, *same, *same)) == 3
    assert sampled(Asked(5), 9, *same, *same, False)[1:] == [["4", "5", "6", "7"], ["8"]]
