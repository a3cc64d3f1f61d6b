"""Turns at the engine: it answers questions, and now and then new weights are brought to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class EngineTurns:
    """Lets two threads have the engine by turns: one that answers, one that learns.

    The one that learns has the next turn whenever it wants one, unless somebody who waits for an
    answer would then have waited for learning longer than the bound.
    """

    def __init__(self, bound_s: float, held_at_arrival: Callable[[], float | None]) -> None:
        """Begin with nobody at the engine.

        Args:
            bound_s: seconds that an answer waits for learning, at most.
            held_at_arrival: returns what `held_s` was when the question arrived that has waited
                longest; None: no question waits.
        """
        self.bound_s, self._held_at_arrival = bound_s, held_at_arrival
        self._changed = threading.Condition()
        self._answering = self._wanted = self._ended = False
        self._since: float | None = None  # when the learner's present turn has begun
        self._held_s = 0.0
        self.longest_s = 0.0
        """The longest turn of the one that learns."""

    @property
    def held_s(self) -> float:
        """Seconds that the one that learns has had the engine, in all its turns."""
        since = self._since
        return self._held_s + (0.0 if since is None else time.monotonic() - since)

    @contextmanager
    def answering(self) -> Iterator[bool]:
        """Have the engine inside the context, to answer; yields False where it was ended."""
        with self._changed:
            self._changed.wait_for(self._may_answer)
            self._answering = not self._ended
        try:
            yield self._answering
        finally:
            with self._changed:
                self._answering = False
                self._changed.notify_all()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Have the engine inside the context, to bring weights to it."""
        with self._changed:
            self._wanted = True
            self._changed.wait_for(lambda: not self._answering)
            self._wanted, self._since = False, time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                took = time.monotonic() - self._since
                self._held_s, self._since = self._held_s + took, None
                self.longest_s = max(self.longest_s, took)
                self._changed.notify_all()

    def end(self) -> None:
        """Let nobody answer any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _may_answer(self) -> bool:
        if self._ended:
            return True
        return self._since is None and (not self._wanted or self._is_urgent())

    def _is_urgent(self) -> bool:
        """Say whether one more turn of learning might make somebody wait too long."""
        begun = self._held_at_arrival()
        return begun is not None and self.held_s - begun + self.longest_s > self.bound_s
