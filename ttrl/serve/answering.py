"""Answers questions in a thread of its own, as they come, while the trainer learns from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ttrl.rollout.resampling import Rollout
from ttrl.run.rollout_phase import RolloutPhase
from ttrl.run.rollouts import Sampled
from ttrl.serve.engine_turns import EngineTurns
from ttrl.settings import Settings
from ttrl.stream.phase import StreamPhase
from ttrl.system.memory import memory_metrics
from ttrl.types import UserError

OnAnswer = Callable[[dict[str, Any], float], None]
"""Function that is told of an answer, and how long learning has made it wait."""


class Answering:
    """The `Rollouts` of a server: a question is answered when it comes, whatever is learned then.

    Answers are gathered until they are those of ``rollout.questions_per_step`` questions. The
    trainer takes them when it is done with the ones before; what has been gathered by then beyond
    the last so many is not learned from.
    """

    def __init__(
        self,
        settings: Settings,
        phase: RolloutPhase,
        stream: StreamPhase,
        limited: Callable[[], AbstractContextManager[None]],
        serving: Callable[[Answering], AbstractContextManager[None]],
    ) -> None:
        """Take what it needs; `running` begins.

        Args:
            settings: of the run.
            phase: samples answers.
            stream: the questions, and what is done with their answers.
            limited: gives the sampling of a few questions its time limit.
            serving: brings questions, inside a context.
        """
        self.settings, self._phase, self._stream = settings, phase, stream
        self._limited, self._serving = limited, serving
        self.turns = EngineTurns(settings.serve.held_s, self._oldest)
        self._arrived: dict[int, float] = {}  # question -> what learning had held up by then
        self._changed = threading.Condition()
        self._rollout, self._metrics, self._seconds = Rollout(), dict[str, float](), 0.0
        self._step = self._not_learned = 0
        self.updates = 0
        """Optimizer steps of the weights that answer."""
        self.longest_held_s = 0.0
        """The longest that learning has made an answer wait."""
        self.on_answer: OnAnswer = lambda record, held_s: None
        self._stopped = False
        self._failed: BaseException | None = None

    # --- For whoever brings questions

    def accept(self, row: bytes) -> tuple[int, bool]:
        """Accept a row; see `Stream.accept`."""

        def note(number: int) -> None:
            self._arrived[number] = self.turns.held_s

        return self._stream.source.stream.accept(row, note)

    def has(self, number: int) -> bool:
        """Say whether a question was accepted."""
        return 0 < number <= self._stream.source.stream.accepted

    def answer(self, number: int) -> dict[str, Any] | None:
        """Read the answer to a question; None: it has none yet."""
        return self._stream.source.stream.answers.find(number)

    def fail(self, error: BaseException) -> None:
        """End the answering by an error of whoever brings questions."""
        with self._changed:
            self._failed = error
            self._changed.notify_all()

    def stop(self) -> None:
        """End the answering after the update that is being made."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def figures(self) -> dict[str, float]:
        """Return how the server stands, as numbers."""
        stream = self._stream.source.stream
        return {
            "answered": stream.answers.last,
            "waiting": stream.waiting,
            "updates": self.updates,
            "learned_steps": self._step - 1,
            "not_learned": self._not_learned,
            "longest_held_s": self.longest_held_s,
            "longest_push_s": self.turns.longest_s,
        }

    # --- For the trainer

    @contextmanager
    def running(self, done: int) -> Iterator[None]:
        """Answer questions inside this context, behind so many steps."""
        self._step = done + 1
        with self.engine():  # for nothing but to know how long it takes
            self._phase.pool.push_weights(self._phase.model)
        if (took := self.turns.longest_s) > self.turns.bound_s:
            raise UserError(
                f"serve.held_s = {self.turns.bound_s:g}: weights take {took:.1f} s to come to the "
                "engine, and answers wait meanwhile: raise it, or set lora.rank"
            )
        stream = self._stream.source.stream
        waiting = range(stream.answers.last + 1, stream.accepted + 1)
        self._arrived = dict.fromkeys(waiting, self.turns.held_s)
        thread = threading.Thread(target=self._run, name="answering", daemon=True)
        thread.start()
        try:
            with self._serving(self):
                yield
        finally:
            self.stop()
            self.turns.end()
            self._stream.source.stream.close()
            thread.join()

    def next(self, done: int) -> Sampled | None:
        """Wait for as many answers as a step learns from; return None where the server stops."""
        wanted, begun = self.settings.rollout.questions_per_step, time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or len(self._rollout.groups) >= wanted)
            if self._failed is not None:
                raise self._failed
            if self._stopped:
                return None
        with self.turns.between():  # nobody adds to it
            rollout, metrics = self._rollout, self._metrics
            metrics |= {"time/rollout_s": self._seconds, **memory_metrics("rollout")}
            self._rollout, self._metrics, self._seconds = Rollout(), {}, 0.0
            self._step = done + 2
        metrics["time/waited_s"] = time.perf_counter() - begun
        metrics["serve/held_s"] = self.longest_held_s
        metrics["serve/not_learned"] = float(self._not_learned)
        return Sampled(done + 1, rollout, metrics)

    def go_on(self, step: int, *, ahead: bool) -> bool:
        """Say that the engine is at work; see `Rollouts.go_on`."""
        return True

    @contextmanager
    def engine(self) -> Iterator[None]:
        """Have the engine between two answers; see `Rollouts.engine`."""
        with self.turns.learning():
            yield
        self.updates = self._stream.model.steps_taken

    # --- The thread

    def _run(self) -> None:
        try:
            self._answer()
        except BaseException as error:  # the trainer raises it: nobody sees this thread's
            self._failed = error
        with self._changed:
            self._changed.notify_all()

    def _answer(self) -> None:
        source = self._stream.source
        window = source.stream.unanswered()
        while source.wait_for(window, self._stream.display):
            with self.turns.answering() as may:
                if not may:
                    return
                self._answer_window(window)
            with self._changed:
                self._changed.notify_all()
            window += 1

    def _answer_window(self, window: int) -> None:
        """Sample and record the answers of a window, and add them to what is learned from."""
        begun, source, held_s = time.perf_counter(), self._stream.source, self.turns.held_s
        rollout, first = self._rollout, len(self._rollout.groups)
        with self._limited():
            self._phase.ask(source.questions(window), self._step, rollout)
        groups, estimates = rollout.groups[first:], rollout.estimates[first:]
        figures = self._stream.answer(self._step, groups, estimates, self.updates)
        # The accuracy of one window says nothing of the step.
        self._metrics |= {k: v for k, v in figures.items() if not k.endswith("_accuracy")}
        self._seconds += time.perf_counter() - begun
        excess = max(0, len(rollout.groups) - self.settings.rollout.questions_per_step)
        self._stream.forget([g.question for g in rollout.drop_first(excess)])
        self._not_learned += excess
        for number in source.asked:
            waited_s = held_s - self._arrived.pop(number, 0.0)
            self.longest_held_s = max(self.longest_held_s, waited_s)
            if (record := source.stream.answers.find(number)) is not None:
                self.on_answer(record, waited_s)

    def _oldest(self) -> float | None:
        waiting = list(self._arrived.values())
        return min(waiting) if waiting else None

    def _is_over(self) -> bool:
        return self._stopped or self._failed is not None
