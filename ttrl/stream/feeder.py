"""The feeder of a stream: a thread that reads an input into the inbox, as far as there is room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ttrl.stream.inbox import Inbox
from ttrl.stream.inputs import Input
from ttrl.stream.lines import Line

POLL_S = 0.1
"""Seconds between two looks at a file or a folder."""


class Feeder:
    """Reads an input line by line, and stops where too many questions wait for their answers."""

    def __init__(
        self,
        source: Input,
        inbox: Inbox,
        has_room: Callable[[], bool],
        changed: threading.Condition,
        idle_s: float | None,
    ) -> None:
        """Take what it needs; `start` begins.

        Args:
            source: the input.
            inbox: where its lines go.
            has_room: says whether another question may be accepted.
            changed: notified when a line was taken, and at the end; whoever makes room notifies it.
            idle_s: seconds without anything new after which the input has ended; None: it has not.
        """
        self._source, self._inbox, self._has_room = source, inbox, has_room
        self._changed, self._idle_s = changed, idle_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self.ended = False
        """Whether nothing more will be accepted."""
        self.failed: BaseException | None = None
        """What has ended it before its time."""

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading between two lines, and wait until the thread has ended."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._feed()
        except BaseException as error:  # the run raises it: nobody sees this thread's
            self.failed = error
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _feed(self) -> None:
        heard, seen = time.monotonic(), self._source.seen
        while self._room():
            lines = self._source.read(POLL_S)
            if lines and self._take(lines):
                return
            if lines or self._source.seen > seen:  # half a line, too: its writer is at work
                heard, seen = time.monotonic(), self._source.seen
            elif lines is None or self._is_long_ago(heard):
                self._take(self._source.rest())
                return

    def _take(self, lines: Sequence[Line]) -> bool:
        """Hand lines over, each when there is room; return whether it was the stream's last."""
        for line in lines:
            if not self._room():
                return True
            ends = self._inbox.take(line)
            with self._changed:
                self._changed.notify_all()
            if ends:
                return True
        return False

    def _room(self) -> bool:
        """Wait until there is room; return whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self._stopped.is_set())
        return not self._stopped.is_set()

    def _is_long_ago(self, heard: float) -> bool:
        return self._idle_s is not None and time.monotonic() - heard >= self._idle_s
