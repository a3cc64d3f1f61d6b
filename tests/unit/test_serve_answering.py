"""What a server holds of questions that it has answered: those that it is about to learn from."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from groups import group, voted

pytest.importorskip("starlette", reason="pip install 'ttrl[serve]'")
from test_serve_app import settings

from ttrl.rollout.resampling import Rollout
from ttrl.serve.answering import Answering
from ttrl.types import Estimate, Question


@dataclass
class Noted:
    """The phases, the source and the stream of a server, a question in each window."""

    forgotten: list[str] = field(default_factory=list)
    asked: tuple[int, ...] = ()

    @property
    def source(self) -> Noted:
        return self

    stream = answers = source

    def questions(self, window: int) -> list[Question]:
        self.asked = (window,)
        return [Question(f"q{window}", "What is 1 + 2?", (1,))]

    def ask(self, questions: list[Question], step: int, rollout: Rollout) -> None:
        of = [group("7", "7", "8", id=question.id) for question in questions]
        estimates = [Estimate(vote=voted(g).vote, rewards_G=(1, 1, 0), label="7") for g in of]
        rollout.add(of, estimates, further=False)

    def answer(self, *what: object) -> dict[str, float]:
        return {"stream/questions": 1.0, "stream/first_accuracy": 1.0}

    def find(self, number: int) -> None:
        return None

    def forget(self, questions: list[Question]) -> None:
        self.forgotten += [question.id for question in questions]


def test_what_will_not_be_learned_from_is_forgotten() -> None:
    """A step takes two questions; five are answered while it is made."""
    noted = cast(Any, Noted())
    of = settings("rollout.questions_per_step=2", "policy.sequences_per_update=64")
    answering = Answering(of, noted, noted, nullcontext, cast(Any, None))
    for window in range(1, 6):
        answering._arrived[window] = 0.0
        answering._answer_window(window)
    assert noted.forgotten == ["q1", "q2", "q3"]
    assert [g.question.id for g in answering._rollout.groups] == ["q4", "q5"]
    assert answering._arrived == {} and answering._not_learned == 3
