"""Windows of a stream: which of the accepted questions each update is of, on disk before it."""

from __future__ import annotations

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
        fields = {"window": int, "first": int, "last": int}
        self._file = AppendedFile(folder / "windows.jsonl", fields)
        self._count = 0
        self.last = 0
        """The last question that is in a window; 0 if none is."""

    def open(self) -> None:
        """Read what an earlier process has left.

        Raises:
            UserError: if a window is not the next one.
        """
        for record in self._file.open():
            begun = (record["window"], record["first"])
            if begun != (self._count + 1, self.last + 1) or record["last"] <= self.last:
                self._file.refuse(f"window {begun[0]} behind window {self._count}")
            self._count, self.last = begun[0], record["last"]

    def find(self, number: int, accepted: int) -> range | None:
        """Return the numbers of a window's questions; None if it is the next to be closed.

        Raises:
            UserError: if windows before it are missing.
        """
        if number > self._count + 1 or self.last > accepted:
            raise UserError(
                f"{self._file.path} has {self._count} windows of {self.last} questions, "
                f"expected those before window {number}, of {accepted} questions or fewer: put "
                "back what is missing in that folder, or start again with another --run-dir"
            )
        found = self._file.first("window", number)
        return None if found is None else range(found["first"], found["last"] + 1)

    def of(self, number: int) -> int:
        """Return the window, counted from 1, of a question; the next one if it is in none."""
        found = self._file.first("last", number)
        return self._count + 1 if found is None else int(found["window"])

    def close(self, count: int, why: Why) -> range:
        """Put the next ``count`` questions in a window; it is on disk when this returns."""
        first, last = self.last + 1, self.last + count
        record = {"window": self._count + 1, "first": first, "last": last, "closed": why}
        self._file.append(json_line(record))
        self._count, self.last = self._count + 1, last
        return range(first, last + 1)
