"""Windows of a stream: which of the accepted questions each update is of, on disk before it."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Literal

from ttrl.stream.appended import AppendedFile, json_line
from ttrl.types import UserError

Why = Literal["full", "patience", "end"]
"""full: so many as a step takes. patience: the first has waited long enough. end: no more came."""


class Windows:
    """Windows of neighbouring questions, in the order of their arrival.

    What one has is decided once, and written down before it is asked: a run that goes on asks the
    same.
    """

    def __init__(self, folder: Path) -> None:
        """Keep windows in ``folder``; `open` comes first."""
        self._file = AppendedFile(folder / "windows.jsonl", {"last": int})
        self._ends = [0]

    def open(self) -> None:
        """Read what an earlier process has left."""
        self._ends += [record["last"] for _, record in self._file.open()]

    @property
    def last(self) -> int:
        """The last question that is in a window; 0 if none is."""
        return self._ends[-1]

    def find(self, number: int, accepted: int) -> range | None:
        """Return the numbers of a window's questions; None if it is the next to be closed.

        Raises:
            UserError: if windows before it are missing.
        """
        if number > len(self._ends) or self.last > accepted:
            raise UserError(
                f"{self._file.path} has {len(self._ends) - 1} windows of {self.last} questions, "
                f"expected those before window {number}, of {accepted} questions or fewer: put "
                "back what is missing in that folder, or start again with another --run-dir"
            )
        if number == len(self._ends):
            return None
        return range(self._ends[number - 1] + 1, self._ends[number] + 1)

    def of(self, number: int) -> int:
        """Return the window, counted from 1, of a question; the next one if it is in none."""
        return bisect_left(self._ends, number)

    def close(self, count: int, why: Why) -> range:
        """Put the next ``count`` questions in a window; it is on disk when this returns."""
        first, last = self.last + 1, self.last + count
        record = {"window": len(self._ends), "first": first, "last": last, "closed": why}
        self._file.append(json_line(record))
        self._ends.append(last)
        return range(first, last + 1)
