"""Lines of an input that is read piece by piece, each with its place there."""

from __future__ import annotations

import codecs
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

LONGEST = 2**22
"""Bytes of a line, at most: what is longer is never held in memory."""
SHOWN = 200
"""Bytes that are kept of a line that is longer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line is.

    Example: ``Place("more.jsonl", 3, 80, 121, 907060870)`` is the third line, of 41 bytes with its
    end.
    """

    file: str
    """Name of the file; "-" for standard input."""
    line: int
    """Number of the line, from 1."""
    begin: int
    """Where it begins, in bytes."""
    end: int
    """Where the next one begins."""
    crc: int
    """CRC-32 of the line without its end, by which it is known again."""

    def as_json(self) -> dict[str, Any]:
        """Return the place as JSON, as `of` reads it."""
        return asdict(self)

    @classmethod
    def of(cls, found: dict[str, Any]) -> Place:
        """Read the place in a record."""
        return cls(*(found[field.name] for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an input, about whose content nothing is known."""

    text: bytes
    """The line without its end; its first `SHOWN` bytes if it is longer than `LONGEST`."""
    place: Place
    """Where it is."""
    is_cut: bool = False
    """Whether the line is longer than `LONGEST`."""


class LineCutter:
    """Cuts pieces of an input into lines; keeps the beginning of one that has no end yet."""

    def __init__(self, file: str, line: int = 0, begin: int = 0) -> None:
        """Go on behind ``line`` lines, the last of which ended at ``begin``."""
        self.file, self.line, self.begin = file, line, begin
        self._parts: list[bytes] = []
        self._length = self._crc = 0

    @property
    def read(self) -> int:
        """How many bytes of the input have been seen."""
        return self.begin + self._length

    def cut(self, piece: bytes) -> list[Line]:
        """Return the lines that end in the next piece of the input."""
        first, *others = piece.split(b"\n")
        self._keep(first)
        found = []
        for text in others:
            found.append(self._line(ended=1))
            self._keep(text)
        return found

    def rest(self) -> list[Line]:
        """Return the line that has no end, if there is one: nothing more will come."""
        return [self._line(ended=0)] if self._length else []

    def _keep(self, text: bytes) -> None:
        if self._length <= LONGEST:
            self._parts.append(text)
        self._length += len(text)
        self._crc = zlib.crc32(text, self._crc)
        if self._length > LONGEST:
            self._parts = [b"".join(self._parts)[:SHOWN]]

    def _line(self, *, ended: int) -> Line:
        text, is_cut = b"".join(self._parts), self._length > LONGEST
        if self.begin == 0:
            text = text.removeprefix(codecs.BOM_UTF8)
        end = self.begin + self._length + ended
        self.line += 1
        place = Place(self.file, self.line, self.begin, end, self._crc)
        self.begin, self._parts, self._length, self._crc = end, [], 0, 0
        return Line(text, place, is_cut)
