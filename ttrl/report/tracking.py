"""A run's experiment trackers: each in a thread of its own, so that training waits for none."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Self

from ttrl.report.trackers import TRACKERS, SampledAnswer, Tracked
from ttrl.settings import Settings
from ttrl.settings.tracking import TrackerName
from ttrl.types import CompletionGroup, Estimate

LAST_WAIT_S = 90.0
"""How long the end of a run waits for what is still on its way."""


class Tracking:
    """Sends the figures of a run to all of its trackers.

    A tracker that fails is named on the screen, once, and gets no more; nothing that it does ends
    the run. A context, around the training: at its end everything is written out.
    """

    def __init__(
        self, settings: Settings, run: Path, note: Callable[[str], None], *, is_main: bool = True
    ) -> None:
        """Read [tracking].

        Args:
            settings: the run's.
            run: its folder.
            note: shows a line.
            is_main: only one of the ranks, which all have the same figures, sends them.
        """
        self.settings = settings.tracking
        tracked = Tracked(
            project=self.settings.project,
            name=self.settings.name or run.absolute().name,
            folder=run / "trackers",
            settings=settings.model_dump(mode="json"),
            toml=settings.to_toml(),
            id=None,
        )
        self.senders = [Sender(name, tracked, note) for name in self.settings.trackers if is_main]

    def __enter__(self) -> Self:
        """Begin to open the trackers."""
        for sender in self.senders:
            sender.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Wait for what is on its way, for as long as `LAST_WAIT_S` in all."""
        for sender in self.senders:
            sender.end(failed=error is not None)
        for sender in self.senders:
            sender.wait()

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        groups: Sequence[CompletionGroup] = (),
        estimates: Sequence[Estimate] = (),
    ) -> None:
        """Send a step's figures, and of every ``tracking.answers_every`` steps a table."""
        if self.senders:
            due = step % self.settings.answers_every == 0 or step == 1
            wanted = self.settings.answers if due else 0
            answers = sampled_answers(groups, estimates, wanted)
            figures = {name: value for name, value in metrics.items() if name != "step"}
            for sender in self.senders:
                sender.send(step, figures, answers)


class Sender(threading.Thread):
    """Talks to one tracker, about one thing after the other."""

    def __init__(self, name: TrackerName, tracked: Tracked, note: Callable[[str], None]) -> None:
        """Remember what is tracked; the thread opens the tracker."""
        super().__init__(name=f"tracker {name}", daemon=True)
        self.kind, self.tracked, self.note = name, tracked, note
        self.state = tracked.folder / f"{name}.json"
        """The tracker's `Tracker.id`, and the last step that it got."""
        self.waiting: queue.SimpleQueue[Sent | End] = queue.SimpleQueue()

    def send(self, step: int, metrics: dict[str, float], answers: list[SampledAnswer]) -> None:
        """Leave a step's figures for the thread."""
        self.waiting.put((step, metrics, answers))

    def end(self, *, failed: bool) -> None:
        """Tell the thread that this was all."""
        self.waiting.put(failed)

    def wait(self) -> None:
        """Wait for the thread's end, not for ever."""
        self.join(LAST_WAIT_S)
        if self.is_alive():
            self.note(
                f"warning: tracker {self.kind}: not done after {LAST_WAIT_S:g} s; left behind"
            )

    def run(self) -> None:
        """Open the tracker, hand it everything, close it."""
        try:
            self._talk()
        except (Exception, SystemExit) as error:  # a library may raise anything
            self.note(
                f"warning: tracker {self.kind} failed with {type(error).__name__}: {error}; the "
                "run goes on without it, and metrics.jsonl holds every figure"
            )

    def _talk(self) -> None:
        self.state.parent.mkdir(exist_ok=True)
        known: dict[str, Any] = {"id": None, "step": -1}
        if self.state.exists():
            known = json.loads(self.state.read_text(encoding="utf-8"))
        tracker = TRACKERS[self.kind](replace(self.tracked, id=known["id"]))
        self._remember(tracker.id, known["step"])
        while not isinstance(sent := self.waiting.get(), bool):
            step, metrics, answers = sent
            if step > known["step"]:  # a run that goes on from a checkpoint repeats some
                tracker.log(step, metrics, answers)
                self._remember(tracker.id, step)
        tracker.finish(failed=sent)

    def _remember(self, name: str, step: int) -> None:
        beside = self.state.with_suffix(".tmp")
        beside.write_text(json.dumps({"id": name, "step": step}), encoding="utf-8")
        beside.replace(self.state)


Sent = tuple[int, dict[str, float], list[SampledAnswer]]
End = bool
"""The last thing that a thread gets: whether the run has failed."""


def sampled_answers(
    groups: Sequence[CompletionGroup], estimates: Sequence[Estimate], wanted: int
) -> list[SampledAnswer]:
    """Take the first answer of each question, then the second of each, until there are enough."""
    by_question = (
        [
            SampledAnswer(
                question=group.question.id,
                prompt=group.prompt_of(i).prompt,
                text=completion.text,
                answer=answer,
                label=estimate.label,
                reward=reward,
            )
            for i, (completion, answer, reward) in enumerate(
                zip(group.completions, estimate.vote.answers_G, estimate.rewards_G, strict=True)
            )
        ]
        for group, estimate in zip(groups, estimates, strict=True)
    )
    in_turn = chain.from_iterable(zip_longest(*by_question))
    return list(islice((answer for answer in in_turn if answer is not None), wanted))
