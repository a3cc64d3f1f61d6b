"""A file of JSON lines that only grows: a line is on disk when it has been added, whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

    def open(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Make the file if there is none; yield where each of its lines begins, and the line.

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
                yield begin, self._parsed(line)
                begin += len(line)
        if begin < self.path.stat().st_size:
            os.truncate(self.path, begin)
        disk.sync(self.path)  # what a killed process wrote last is a whole line, perhaps, in memory

    def append(self, line: bytes) -> int:
        """Add a line, with its end; return where it begins."""
        begin = self.path.stat().st_size
        disk.append(self.path, line)
        return begin

    def line(self, begin: int) -> dict[str, Any]:
        """Read the line that begins there."""
        with self.path.open("rb") as file:
            file.seek(begin)
            return self._parsed(file.readline())

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            found = parse_json(line.decode())
            if not isinstance(found, dict):
                raise ValueError("expected an object")
            for name, kind in self._fields.items():
                if name not in found or not isinstance(found[name], kind):
                    raise ValueError(f"expected {name!r}, of type {kind.__name__}")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}: a line is not one of ours ({error}): put the file back, or start "
                "again with another --run-dir"
            ) from error
        return found


def json_line(record: dict[str, Any]) -> bytes:
    """Write a record as a line; it escapes what UTF-8 cannot hold."""
    return (json.dumps(record, allow_nan=False) + "\n").encode()
