"""A time limit for each phase of a run: whatever hangs, the run ends, and says where it hung."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_CODE = 3
"""The exit code of a run that a watchdog ended."""

GRACE_S = 30.0
"""Seconds later the interpreter ends a process that cannot even run the watchdog's thread."""

STDERR = 2
"""The file descriptor of standard error: sys.stderr may have been replaced."""


class Watchdog:
    """Ends the process when a phase takes too long; there is no way to go on from where it hangs.

    Other ranks are ended by their launcher, engines in other processes by themselves. Nothing is
    cleaned up: what is on disk is complete, or known to be incomplete.
    """

    def __init__(self, stacks: Path, hint: str) -> None:
        """Watch phases.

        Args:
            stacks: file for what every thread was doing; its folder may not exist yet, then
                they go to the screen.
            hint: how to continue such a run.
        """
        self.stacks = stacks
        self.hint = hint

    @contextmanager
    def phase(self, name: str, setting: str, limit_s: float) -> Iterator[None]:
        """Let this context take at most ``limit_s`` seconds, which is the value of ``setting``."""
        over = threading.Event()

        def wait() -> None:
            if not over.wait(limit_s):
                self._end(f"{name} took longer than {setting} = {limit_s:g} seconds")

        thread = threading.Thread(target=wait, name="watchdog", daemon=True)
        thread.start()
        faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=STDERR)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            over.set()
            thread.join()

    def _end(self, what: str) -> None:
        where = "above"
        if self.stacks.parent.is_dir():
            with self.stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            where = f"in {self.stacks}"
        else:
            faulthandler.dump_traceback(STDERR, all_threads=True)
        text = f"ttrl: error: {what}: it seems stuck. What it was doing is {where}. {self.hint}\n"
        os.write(STDERR, text.encode())
        os._exit(EXIT_CODE)
