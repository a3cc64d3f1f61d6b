"""The page of a run that goes on: written by a process beside it, which cannot fail the run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ttrl.report.display import Display
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import AnswerKey

SHARE = 0.05
"""Of the run's time, for the process."""
LAST_S = 600.0
"""Seconds that the end of a run waits for its page."""


class LiveReport:
    """Keeps ``report.html`` up to date.

    The page is made by `ttrl.run.report_process`: it must not take the time, the memory or the GIL
    of training, and whatever goes wrong with it is said once and changes nothing. The answer key
    goes there to show which labels are wrong, and nothing comes back.
    """

    def __init__(
        self,
        folder: Path,
        key: AnswerKey | None,
        settings: Settings,
        display: Display,
        ranks: Ranks,
    ) -> None:
        """Take what it is about; only the first rank writes.

        Args:
            folder: the run's.
            key: which labels are right; None: the run's folder says so (`references`).
            settings: of the run.
            display: hears what goes wrong.
            ranks: of the run.
        """
        self.folder, self.key, self.display = folder, key, display
        self.every_s = settings.report.every_s if ranks.rank == 0 else 0.0
        self._process: subprocess.Popen[str] | None = None
        self._due = 0.0
        self._failed = False

    def refresh(self) -> None:
        """Begin to write the page anew, unless that is going on or was done a moment ago."""
        if not self.every_s:
            return
        if self._process is not None and self._process.poll() is not None:
            self._end(self._process)
        if self._process is None and time.monotonic() >= self._due:
            self._process = self._start(ended=False)

    def finish(self) -> None:
        """Write the page for the last time, and wait for it."""
        if not self.every_s:
            return
        if self._process is not None:  # what it writes is about to be old
            self._process.kill()
            self._process.communicate()
        process = self._process = self._start(ended=True)
        if process is None:
            return
        try:
            self._end(process)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self._say(f"not done in {LAST_S:.0f} s")

    def _start(self, *, ended: bool) -> subprocess.Popen[str] | None:
        command = [sys.executable, "-m", "ttrl.run.report_process", str(self.folder)]
        pipe = subprocess.PIPE
        try:
            with tempfile.TemporaryFile("w+", encoding="utf-8") as given:
                known = None if self.key is None else dict(self.key.answers)
                json.dump({"references": known, "ended": ended}, given)
                given.seek(0)
                return subprocess.Popen(command, stdin=given, stdout=pipe, stderr=pipe, text=True)
        except OSError as error:  # no memory for a process, a full disk
            self._due = time.monotonic() + self.every_s
            self._say(str(error))
            return None

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Read what a process says at its end, and decide when the next may begin."""
        said, errors = process.communicate(timeout=LAST_S)
        wait_s = self.every_s
        if process.returncode == 0:
            wait_s = max(wait_s, float(said) / SHARE)
        else:
            lines = errors.strip().splitlines()
            self._say(lines[-1] if lines else f"exit code {process.returncode}")
        self._process = None
        self._due = time.monotonic() + wait_s

    def _say(self, why: str) -> None:
        if not self._failed:
            self.display.note(f"report.html is not up to date: {why}; `ttrl report` makes it anew")
        self._failed = True
