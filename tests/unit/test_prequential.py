"""Figures of a stream by hand: each question scored before it is learned from."""

from __future__ import annotations

import json

import pytest
from groups import group, voted

from ttrl.answers import Grader
from ttrl.evaluation.prequential import Prequential
from ttrl.types import AnswerKey, CompletionGroup, Vote


def asked(
    *questions: tuple[str, tuple[str | None, ...]],
) -> tuple[list[CompletionGroup], list[Vote]]:
    groups = [group(*answers, id=name) for name, answers in questions]
    return groups, [voted(g).vote for g in groups]


KEY = AnswerKey({f"q{i}": "7" for i in range(1, 6)})
# first right, majority right
BOTH, FIRST, MAJORITY, NEITHER = ("7", "7", "8"), ("7", "8", "8"), ("8", "7", "7"), ("8", "8", "7")
SILENT: tuple[None, ...] = (None, None, None)


@pytest.fixture
def grader() -> Grader:
    return Grader()


def test_by_hand(grader: Grader) -> None:
    stream = Prequential()
    first = stream.score(*asked(("q1", BOTH), ("q2", MAJORITY)), KEY, grader)
    assert first == {
        "stream/questions": 2,
        "stream/scored": 2,
        "stream/first_accuracy": 1 / 2,
        "stream/majority_accuracy": 1,
        "stream/first_accuracy_mean": 1 / 2,
        "stream/majority_accuracy_mean": 1,
        "stream/first_accuracy_last_third": 0,  # of two questions it is one
        "stream/majority_accuracy_last_third": 1,
    }
    # The second has no reference answer: it is counted, and not scored. An abstention is wrong.
    second = stream.score(*asked(("q3", FIRST), ("other", BOTH), ("q4", SILENT)), KEY, grader)
    assert (second["stream/questions"], second["stream/scored"]) == (5, 4)
    assert second["stream/first_accuracy"] == 1 / 2
    assert second["stream/majority_accuracy"] == 0
    assert second["stream/first_accuracy_mean"] == 2 / 4
    assert second["stream/majority_accuracy_mean"] == 2 / 4
    assert second["stream/first_accuracy_last_third"] == 1 / 2  # q3, q4
    assert second["stream/majority_accuracy_last_third"] == 0
    assert stream.spend(600, 10.0) == {
        "stream/tokens_per_question": 120,
        "time/per_question_s": 2.0,
    }
    assert stream.spend(400, 5.0)["stream/tokens_per_question"] == 200
    assert stream.summary() == {
        "questions": 5,
        "scored": 4,
        "first_accuracy_mean": 1 / 2,
        "first_accuracy_last_third": 1 / 2,
        "majority_accuracy_mean": 1 / 2,
        "majority_accuracy_last_third": 0,
        "tokens_per_question": 200,
        "seconds_per_question": 3.0,
    }


def test_adapted_answers_are_apart(grader: Grader) -> None:
    stream = Prequential()
    stream.score(*asked(("q1", NEITHER)), KEY, grader)
    found = stream.score(*asked(("q1", BOTH)), KEY, grader, adapted=True)
    assert found == {
        "stream/questions": 1,
        "stream/scored": 1,
        "stream/adapted_first_accuracy": 1,
        "stream/adapted_majority_accuracy": 1,
        "stream/adapted_first_accuracy_mean": 1,
        "stream/adapted_majority_accuracy_mean": 1,
        "stream/adapted_first_accuracy_last_third": 1,
        "stream/adapted_majority_accuracy_last_third": 1,
    }
    assert stream.summary()["first_accuracy_mean"] == 0


def test_without_reference_answers_there_are_none(grader: Grader) -> None:
    stream = Prequential()
    assert stream.score(*asked(("other", BOTH)), KEY, grader) == {"stream/questions": 1}
    assert stream.summary()["scored"] == 0 and "first_accuracy_mean" not in stream.summary()


def test_it_goes_on_from_a_checkpoint(grader: Grader) -> None:
    whole, left = Prequential(), Prequential()
    steps = [("q1", BOTH), ("q2", NEITHER), ("q3", FIRST), ("q5", BOTH)]
    for i, question in enumerate(steps):
        for stream in (whole, left):
            stream.score(*asked(question), KEY, grader)
            stream.spend(10, 1.0)
        again = Prequential()
        again.load_state(json.loads(json.dumps(left.state())))
        left = again
        assert left.summary() == whole.summary(), i
