"""When a step's answers are sampled: in turn with the updates, or one step ahead of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

from ttrl.rollout.resampling import Rollout
from ttrl.run.rollout_phase import RolloutPhase
from ttrl.system.memory import memory_metrics
from ttrl.types import CompletionGroup, Estimate

Limited = Callable[[str], AbstractContextManager[None]]
"""Function that gives a phase its time limit in ``[limits]``."""
OnSampled = Callable[[int, Sequence[CompletionGroup], Sequence[Estimate]], dict[str, float]]
"""Function that is shown a step's answers before they are learned from, and returns figures."""


class Sampled(NamedTuple):
    """What a step learns from."""

    step: int
    """The training step."""
    rollout: Rollout
    """Its answers."""
    metrics: dict[str, float]
    """Figures of the sampling: ``time/rollout_s`` is how long the update has waited for it."""


class Rollouts(Protocol):
    """Gives the trainer the answers of one step after the other, and the engine when it asks."""

    def running(self, done: int) -> AbstractContextManager[None]:
        """Go on behind so many steps, inside the context."""
        ...

    def next(self, done: int) -> Sampled | None:
        """Return the answers of the next step; all ranks call this together.

        Args:
            done: the number of steps done.

        Returns:
            The answers; None: the run has come to its end.
        """
        ...

    def go_on(self, step: int, *, ahead: bool) -> bool:
        """Begin what is sampled beside the update of a step.

        Args:
            step: the training step, whose votes have become history.
            ahead: whether the next step may be sampled with weights from before this one.

        Returns:
            Whether the engine is at work, and may not sleep.
        """
        ...

    def engine(self) -> AbstractContextManager[None]:
        """Have the engine for oneself inside the context, to bring weights to it."""
        ...


class InTurn:
    """Samples a step when the one before is done, or, where it is asked to, beside its update."""

    def __init__(
        self,
        phase: RolloutPhase,
        goes_on: Callable[[int], bool],
        on_sampled: OnSampled,
        limited: Limited,
    ) -> None:
        """Take what it needs.

        Args:
            phase: samples the answers of a step.
            goes_on: says whether there is a step to make after so many, perhaps after waiting.
            on_sampled: is shown the answers, if they are those to questions that arrive.
            limited: gives a phase its time limit.
        """
        self._phase, self._goes_on = phase, goes_on
        self._on_sampled, self._limited = on_sampled, limited
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._ahead: Future[Rollout] | None = None

    def running(self, done: int) -> AbstractContextManager[None]:
        """Do nothing: each step is asked for; see `Rollouts.running`."""
        return nullcontext()

    def next(self, done: int) -> Sampled | None:
        """Return the answers of the next step; see `Rollouts.next`."""
        if not self._goes_on(done):
            return None
        step, begun = done + 1, time.perf_counter()
        with self._limited("rollout"):
            rollout = self._phase.run(step) if self._ahead is None else self._ahead.result()
        metrics = {"time/rollout_s": time.perf_counter() - begun, **memory_metrics("rollout")}
        metrics |= self._on_sampled(step, rollout.groups, rollout.estimates)
        return Sampled(step, rollout, metrics)

    def go_on(self, step: int, *, ahead: bool) -> bool:
        """Begin the step after this one, if it may be; see `Rollouts.go_on`."""
        self._ahead = self._beside.submit(self._phase.run, step + 1) if ahead else None
        return ahead

    @contextmanager
    def engine(self) -> Iterator[None]:
        """Wait until what was begun ahead is sampled; see `Rollouts.engine`."""
        if self._ahead is not None:
            with self._limited("rollout"):
                wait([self._ahead])
        yield
