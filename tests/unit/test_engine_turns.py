"""Who has the engine next: those who wait for answers, or the one that has learned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ttrl.serve import engine_turns
from ttrl.serve.engine_turns import EngineTurns


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(engine_turns, "time", made)
    return made


def learn(turns: EngineTurns, clock: Clock, seconds: float) -> None:
    with turns.learning():
        clock.now += seconds


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_learning_holds_up_is_counted_while_it_does(clock: Clock) -> None:
    turns = EngineTurns(5.0, lambda: None)
    learn(turns, clock, 2.0)
    assert (turns.held_s, turns.longest_s) == (2.0, 2.0)
    with turns.learning():
        clock.now += 0.5
        assert turns.held_s == 2.5
        clock.now += 1.0
    clock.now += 50.0
    assert (turns.held_s, turns.longest_s) == (3.5, 2.0)


@pytest.mark.parametrize(
    ("held_at_arrival", "learns_first"),
    [
        (None, True),  # nobody waits
        (2.0, True),  # has waited 0 s; a turn of 2 s more is within 5 s
        (-1.0, True),  # 3 s, and 2 s more are 5 s
        (-1.5, False),  # 3.5 s: it might become 5.5 s
    ],
)
def test_the_longest_wait_decides(
    clock: Clock, held_at_arrival: float | None, learns_first: bool
) -> None:
    turns = EngineTurns(5.0, lambda: held_at_arrival)
    learn(turns, clock, 2.0)
    thread = threading.Thread(target=learn, args=[turns, clock, 1.0])
    with turns.answering():
        thread.start()
        until(lambda: turns._wanted)
        assert turns.held_s == 2.0  # the present answer is given to its end
        assert turns._may_answer() == (not learns_first)
    thread.join(30)
    assert turns.held_s == 3.0
    with turns.answering() as may:
        assert may


def test_answers_go_on_when_learning_is_over(clock: Clock) -> None:
    turns = EngineTurns(5.0, lambda: None)
    order = []

    def answer() -> None:
        with turns.answering() as may:
            order.append("answer" if may else "ended")

    with turns.learning():
        thread = threading.Thread(target=answer)
        thread.start()
        time.sleep(0.05)
        order.append("learn")
    thread.join()
    turns.end()
    answer()
    assert order == ["learn", "answer", "ended"]


def test_learning_that_fails_gives_the_engine_back(clock: Clock) -> None:
    turns = EngineTurns(5.0, lambda: None)
    with pytest.raises(ValueError, match="no memory"), turns.learning():
        clock.now += 1.0
        raise ValueError("no memory")
    with turns.answering() as may:
        assert may
    assert turns.held_s == 1.0
