"""A stream of questions in a run's folder: its inbox, its windows, and its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttrl.data.questions import ReadQuestion
from ttrl.run.disk import disk
from ttrl.settings import Settings
from ttrl.settings.serve_rules import serves
from ttrl.stream.answers import Answers
from ttrl.stream.feeder import Feeder
from ttrl.stream.inbox import Inbox, Read
from ttrl.stream.inputs import STDIN, Folder, GrowingFile, Input, Pipe
from ttrl.stream.windows import Why, Windows
from ttrl.types import UserError

FOLDER = "stream"
"""Name of the folder in a run's."""
STDIN_DESCRIPTOR = 0
PATIENT_S = 0.2
"""Seconds between two looks at a stream that nothing has come from."""


class Stopped(Exception):
    """The stream is closed: nothing is accepted, and nothing is asked."""


class Stream:
    """All that one process, rank 0, holds of a stream; a feeder thread reads beside it.

    Rows that are sent (``data.train = "http"``) come by `accept`, and there is no feeder.

    What is accepted is asked, and what is asked is answered, in the order in which it came.
    """

    def __init__(self, settings: Settings, folder: Path, read: Callable[[], Read]) -> None:
        """Open the stream in a run's folder, which is there, where an earlier process has left it.

        Args:
            settings: of the run.
            folder: the run's.
            read: makes a function that reads rows, for one thread.

        Raises:
            UserError: if files of the stream are not ours, or the input is another one now.
        """
        self._settings, self._read = settings, read()
        path = folder / FOLDER
        path.mkdir(exist_ok=True)
        disk.sync(folder)
        self._inbox, self._windows = Inbox(path, read()), Windows(path)
        self.answers = Answers(path / "answers.jsonl")
        self.adapted = Answers(path / "adapted.jsonl")
        for part in (self._inbox, self._windows, self.answers, self.adapted):
            part.open()
        self._changed = threading.Condition()
        self._waited = (0, 0.0)  # the first question of the next window, and since when
        self._accepting = threading.Lock()  # held while a row is accepted: `close` waits for it
        self._stopped = False
        self._feeder: Feeder | None = None
        if not serves(settings):
            self._feeder = Feeder(
                self._input(), self._inbox, self._has_room, self._changed, settings.stream.idle_s
            )
            self._feeder.start()

    def close(self) -> None:
        """Stop reading, and end a `take` that waits, from whatever thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._feeder is not None:
            self._feeder.stop()
        with self._accepting:
            self._inbox.close()

    @property
    def accepted(self) -> int:
        """The number of questions that were accepted."""
        return self._inbox.count

    @property
    def waiting(self) -> int:
        """The number of accepted questions that have no answer."""
        return self._inbox.count - self.answers.last

    def accept(self, row: bytes, on_new: Callable[[int], object]) -> tuple[int, bool]:
        """Accept a row that was sent, on disk when this returns; always from the same thread.

        Args:
            row: JSON.
            on_new: told of the number of a new question, before that is asked.

        Returns:
            The question's number, and whether it is new: an id names one question.

        Raises:
            BadRow: if it cannot be asked.
            TakenId: if another row has its id.
            QueueFull: if it is new, and too many wait.
            Stopped: if the stream is closed.
        """
        with self._accepting:
            if self._stopped:
                raise Stopped
            sent = self._inbox.checked(row)
            with self._changed:  # nobody sees it before `on_new` does
                number, is_new = self._inbox.accept(sent, self._has_room)
                if is_new:
                    on_new(number)
                self._changed.notify_all()
            return number, is_new

    def unanswered(self) -> int:
        """Return the number of the first window with a question that has no answer."""
        return self._windows.of(self.answers.last + 1)

    def take(self, number: int, on_wait: Callable[[], object]) -> dict[int, ReadQuestion] | None:
        """Return the questions of a window, by their numbers, as soon as it is closed.

        Args:
            number: of the window, from 1; those before it have been taken.
            on_wait: called again and again while nothing can be done.

        Returns:
            At least one question; None: the stream has ended.

        Raises:
            UserError: if the input cannot be read any more, or answers before these questions are
                missing.
        """
        found = self._windows.find(number, self._inbox.count)
        # Before it waits: without answers there may be no room for what it would wait for.
        self.answers.refuse_gap(self._windows.last + 1 if found is None else found.start)
        while found is None:
            with self._changed:
                closed = self._closed()
                if closed is None:
                    self._changed.wait(PATIENT_S)
            if closed is None:
                on_wait()
            elif not closed[0]:
                return None
            else:
                found = self._windows.close(*closed)
        return {i: self._inbox.question(i, self._read) for i in found}

    def answer(self, records: list[dict[str, Any]], *, adapted: bool) -> None:
        """Write answers down; there may be room for further questions then."""
        (self.adapted if adapted else self.answers).add(records)
        with self._changed:
            self._changed.notify_all()

    def _closed(self) -> tuple[int, Why] | None:
        """Say how many questions make a window now, and why; None: wait."""
        if self._stopped:
            return 0, "end"
        if self._feeder is not None and (error := self._feeder.failed) is not None:
            if isinstance(error, UserError | OSError):
                raise UserError(f"the stream of questions has failed: {error}") from error
            raise error
        ended = (
            self._feeder is not None and self._feeder.ended
        )  # before the questions are counted: then all are there
        first, full = self._windows.last + 1, self._settings.rollout.questions_per_step
        pending = self._inbox.count - first + 1
        if pending >= full:
            return full, "full"
        if ended:
            return pending, "end"
        if pending == 0:
            return None
        if self._waited[0] != first:
            self._waited = (first, time.monotonic())
        if time.monotonic() - self._waited[1] >= self._settings.stream.patience_s:
            return pending, "patience"
        return None

    def _has_room(self) -> bool:
        return self.waiting < self._settings.stream.queue

    def _input(self) -> Input:
        """Open the input behind what was read of it."""
        train, progress = self._settings.data.train, self._inbox.progress
        if train == STDIN:
            return Pipe(STDIN_DESCRIPTOR)
        path = Path(train)
        if path.is_dir():
            return Folder(path, self._inbox.names, progress.last)
        return GrowingFile(path, progress.last)
