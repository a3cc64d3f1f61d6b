"""Questions chosen by the shares of their votes, with shares and variances worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ttrl.report.choice import Visited, chosen, settings_for, visited
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

SURE, SPLIT, MOVED = (
    Visited("sure", (1.0, 1.0)),
    Visited("split", (0.5, 0.5)),
    Visited("m", (0.25, 0.75)),
)
ALL = [SURE, SPLIT, MOVED]


def group(id: str, ratio: float, answer: str | None = "7", judged: bool = True) -> Any:
    without_a_vote = SimpleNamespace(answer="7", votes=False)
    answers = [SimpleNamespace(answer=answer, votes=True), without_a_vote]
    return SimpleNamespace(question=id, majority_ratio=ratio, answers=answers, judged=judged)


def test_half_goes_by_the_first_visit() -> None:
    assert [q.distance("half") for q in ALL] == [0.5, 0.0, 0.25]
    assert [q.id for q in chosen(ALL, "half", 2)] == ["split", "m"]


def test_variance_goes_by_all_visits() -> None:
    # mean 0.5; both are 0.25 away from it: 0.0625
    assert [q.distance("variance") for q in ALL] == [0.0, 0.0, -0.0625]
    assert [q.id for q in chosen(ALL, "variance", 3)] == [
        "m",
        "sure",
        "split",
    ]  # the first of equals


@pytest.mark.parametrize(
    ("by", "words"), [("half", "votes on 2 questions, and"), ("variance", "on 1 questions at two")]
)
def test_too_few_are_refused(by: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen([SPLIT, Visited("once", (0.5,))], by, 3)


def test_visits_are_read_from_steps_in_turn() -> None:
    steps = {
        1: [group("b", 0.5), group("a", 0.75)],
        2: [group("b", 1.0), group("mute", 1.0, None), group("answered", 0.5, judged=False)],
    }
    run = cast("Any", SimpleNamespace(sampled=[1, 2], groups=steps.__getitem__))
    assert visited(run) == [Visited("b", (0.5, 1.0)), Visited("a", (0.75,))]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["questions_per_step=1", "votes=1024", "trained_samples=512"]),
        (5, ["questions_per_step=5", "votes=192", "trained_samples=96", "per_update=480"]),
        (16, []),
    ],
)
def test_what_is_printed_trains_on_as_many_answers(count: int, expected: list[str]) -> None:
    run = load_settings("tiny-arithmetic", overrides=["policy.sequences_per_update=512"])
    found = settings_for([Visited(f"q'{i}", (0.5,)) for i in range(count)], run)
    assert [s.rpartition(".")[2].removeprefix("sequences_") for s in found[1:]] == expected
    settings = load_settings("tiny-arithmetic", overrides=found)  # and no rule forbids it
    assert len(settings.data.ids) == count
