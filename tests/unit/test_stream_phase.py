"""When a run that adapts to each question answers it again, and when it goes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from groups import group, voted

from ttrl.stream.phase import StreamPhase
from ttrl.types import StepResult

GROUP = group("7", "8", "7")


@dataclass
class Noted:
    """Source, adaptation and all else of a phase, of two visits for each question."""

    done: list[str] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    """Of the weights whose answers were written down."""
    waited_s = 0.0
    key = grader = None

    def questions(self, step: int) -> list[Any]:
        return [GROUP.question]

    def is_first_visit(self, step: int) -> bool:
        return step % 2 == 1

    def is_last_visit(self, step: int) -> bool:
        return step % 2 == 0

    def reset(self) -> None:
        self.done.append("reset")

    def forget(self, questions: object) -> None:
        self.done.append("forget")

    def answer(self, step: Any, updates: Any, *what: object, adapted: bool = False) -> Any:
        self.done.append("write" if adapted else "answer")
        self.updates.append(updates)
        return [GROUP], [voted(GROUP).vote]

    def score(self, *what: object, adapted: bool = False) -> dict[str, float]:
        return {} if adapted else {"scored": 1.0}

    def spend(self, tokens: float, seconds: float) -> dict[str, float]:
        return {"spent": tokens, "took": seconds}

    steps_taken = 3
    vote = voted(GROUP).vote


@pytest.mark.parametrize(
    ("step", "is_end", "adapts", "expected"),
    [
        (1, False, True, []),
        (1, True, True, ["reset"]),  # among the visits: there is no adapted answer
        (2, False, True, ["answer", "write", "reset", "forget", "forget", "forget"]),
        (2, True, True, ["answer", "write", "reset", "forget", "forget", "forget"]),
        (1, True, False, []),
        (2, True, False, ["forget", "forget", "forget"]),
    ],
)
def test_what_comes_after_a_step(
    step: int, is_end: bool, adapts: bool, expected: list[str]
) -> None:
    noted = cast(Any, Noted())
    adaptation = noted if adapts else None
    phase = StreamPhase(noted, noted, noted, noted, noted, adaptation, noted)
    times = {"rollout/tokens": 5.0, "time/rollout_s": 1.0, "time/update_s": 2.0}
    times["free_pass/tokens"] = 40.0
    result = StepResult(step, [], [], dict(times))
    went_back = phase.after_push(result, is_end=is_end)
    assert noted.done == expected
    assert went_back == ("reset" in expected)
    adapted = 1 + 2 + 3 if "answer" in expected else 0  # tokens of the three answers
    assert result.metrics["spent"] == 5 + 40 + adapted
    assert result.metrics["took"] > 3.0


def test_only_a_first_visit_is_an_exam() -> None:
    noted = cast(Any, Noted())
    phase = StreamPhase(noted, noted, noted, noted, noted, None, noted)
    estimates = cast(Any, [Noted()])
    assert phase.answer(2, [GROUP], estimates) == {} and noted.done == []
    assert phase.answer(3, [GROUP], estimates) == {"scored": 1.0}
    assert phase.answer(3, [GROUP], estimates, updates=1) == {"scored": 1.0}
    assert (noted.done, noted.updates) == (["answer", "answer"], [3, 1])
