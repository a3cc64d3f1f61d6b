"""Where labels come from, with a policy of one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from ttrl.rewards.labels import OwnVotes, ReferenceAnswers, Teacher
from ttrl.types import AnswerKey, Question, WeightSource

A, B = Question("a", "", (1,)), Question("b", "", (1,))


class OneWeight:
    """A policy whose only weight is a number."""

    def __init__(self, value: float) -> None:
        self.weight = torch.tensor([value])

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "w", self.weight


class Electorate:
    """Elects the teacher's weight, and keeps count of whom it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[str]]] = []

    def __call__(
        self, teacher: WeightSource, questions: Sequence[Question], step: int
    ) -> dict[str, str | None]:
        self.asked.append((step, [q.id for q in questions]))
        (value,) = (tensor.item() for _, tensor in teacher.named_weights())
        return {q.id: f"{value:g}" for q in questions}


def test_own_votes_say_nothing_beforehand() -> None:
    assert OwnVotes().labels_for([A, B], 1, Electorate()) is None


def test_reference_answers() -> None:
    source = ReferenceAnswers(AnswerKey({"a": "7"}))
    assert source.labels_for([A, B], 1, Electorate()) == {"a": "7", "b": None}


def test_a_fixed_teacher_keeps_the_first_weights_and_is_asked_once() -> None:
    policy, elect = OneWeight(2.0), Electorate()
    teacher = Teacher(policy, 1.0)
    assert teacher.labels_for([A], 1, elect) == {"a": "2"}
    policy.weight.fill_(5)
    teacher.after_update(policy)
    assert teacher.labels_for([A, B], 2, elect) == {"a": "2", "b": "2"}
    assert teacher.labels_for([B, A], 3, elect) == {"a": "2", "b": "2"}
    assert elect.asked == [(1, ["a"]), (2, ["b"])]


def test_labels_of_questions_that_are_not_asked_again_are_dropped() -> None:
    teacher = Teacher(OneWeight(2.0), 1.0)
    teacher.labels_for([A, B], 1, Electorate())
    teacher.forget([A])
    assert teacher.state() == {"b": "2"}
    moving = Teacher(OneWeight(2.0), 0.5)
    moving.labels_for([A, B], 1, Electorate())
    assert moving._known == {}


def test_a_moving_teacher_is_an_exponential_moving_average() -> None:
    policy, elect = OneWeight(0.0), Electorate()
    teacher = Teacher(policy, 0.75)
    policy.weight.fill_(4)
    teacher.after_update(policy)  # 0.75 * 0 + 0.25 * 4 = 1
    assert teacher.labels_for([A], 1, elect) == {"a": "1"}
    teacher.after_update(policy)  # 0.75 * 1 + 0.25 * 4 = 1.75
    assert teacher.labels_for([A], 2, elect) == {"a": "1.75"}
    assert elect.asked == [(1, ["a"]), (2, ["a"])]


def test_a_teacher_without_memory_is_the_policy() -> None:
    policy, elect = OneWeight(0.0), Electorate()
    teacher = Teacher(policy, 0.0)
    policy.weight.fill_(3)
    teacher.after_update(policy)
    assert teacher.labels_for([A], 1, elect) == {"a": "3"}
    assert policy.weight.item() == pytest.approx(3)
