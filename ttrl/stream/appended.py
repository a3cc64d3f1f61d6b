"""A file of JSON lines that only grows: a line is on disk when it has been added, whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ttrl.data.rows import parse_json
from ttrl.run.disk import disk
from ttrl.types import UserError


class AppendedFile:
    """JSON lines of one run, one writer; `ttrl.run.disk.Disk` does all of the writing."""

    def __init__(self, path: Path, fields: Mapping[str, type]) -> None:
        """Name the file; `open` makes it.

        Args:
            path: the file.
            fields: what each of its lines has, by name, and of which type it is.
        """
        self.path, self._fields = path, fields
        self._size = 0  # of the whole lines

    def open(self) -> Iterator[dict[str, Any]]:
        """Make the file if there is none; yield its lines.

        A last line without an end is what a killed process has left: it is taken off.

        Raises:
            UserError: if a line is not one of ours.
        """
        if not self.path.exists():
            disk.append(self.path, b"")
            disk.sync(self.path.parent)
        begin = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                yield self._parsed(line)
                begin += len(line)
        if begin < self.path.stat().st_size:
            os.truncate(self.path, begin)
        self._size = begin
        disk.sync(self.path)  # what a killed process wrote last is a whole line, perhaps, in memory

    def append(self, lines: bytes) -> None:
        """Add lines, each with its end."""
        disk.append(self.path, lines)
        self._size += len(lines)  # only now: another thread may be looking for a line

    def first(self, name: str, least: int) -> dict[str, Any] | None:
        """Find the first line whose ``name`` is so large; None: there is none.

        The values of ``name`` grow from line to line, so a few lines are read, however many there
        are, and nothing is kept in memory.
        """
        low, high, found = 0, self._size, None
        with self.path.open("rb") as file:
            # A line that begins before low is too small; the first begins before high, if it is
            # not the one that was found.
            while low < high:
                middle = (low + high) // 2
                begin = _next_begin(file, middle) if middle > low else low
                if begin >= high:
                    high = middle
                    continue
                file.seek(begin)
                line = file.readline()
                record = self._parsed(line)
                if record[name] >= least:
                    high, found = middle, record
                else:
                    low = begin + len(line)
        return found

    def refuse(self, why: str) -> NoReturn:
        """Raise a UserError: what the file holds is not what was written to it."""
        raise UserError(
            f"{self.path}: a line is not one of ours ({why}): put the file back, or start "
            "again with another --run-dir"
        )

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            found = parse_json(line.decode())
            if not isinstance(found, dict):
                raise ValueError("expected an object")
            for name, kind in self._fields.items():
                if name not in found or not isinstance(found[name], kind):
                    raise ValueError(f"expected {name!r}, of type {kind.__name__}")
        except (ValueError, RecursionError) as error:
            self.refuse(str(error))
        return found


def _next_begin(file: BinaryIO, at: int) -> int:
    """Return where the first line begins that does not begin before ``at``."""
    file.seek(at - 1)
    return at - 1 + len(file.readline())


def json_line(record: dict[str, Any]) -> bytes:
    """Write a record as a line; it escapes what UTF-8 cannot hold."""
    return (json.dumps(record, allow_nan=False) + "\n").encode()
