"""Inputs that a stream of questions is read from: a file that grows, a folder, standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from ttrl.settings.serve_rules import SENT
from ttrl.stream.lines import Line, LineCutter, Place
from ttrl.types import UserError

PIECE = 2**16
"""Bytes that are read at a time."""
STDIN = "-"
"""What ``data.train`` calls standard input."""


class Input(Protocol):
    """Something that lines come from; it is read by one thread."""

    @property
    def seen(self) -> int:
        """A number that grows whenever something new was seen: bytes, and whole files."""
        ...

    def read(self, wait_s: float) -> list[Line] | None:
        """Return lines that have come, after so many seconds at most; None: no more will come.

        Raises:
            UserError: if it is no longer what has been read of it.
        """
        ...

    def rest(self) -> list[Line]:
        """Return the last line, if it has no end: nothing more will come."""
        ...


class Pipe:
    """An open file that cannot be read again, until its writer closes it."""

    def __init__(self, descriptor: int, name: str = STDIN) -> None:
        """Read from a ``descriptor``, which stays open."""
        self.descriptor = descriptor
        self._cutter = LineCutter(name)

    @property
    def seen(self) -> int:
        """How many bytes have been read."""
        return self._cutter.read

    def read(self, wait_s: float) -> list[Line] | None:
        """Return what has come; see `Input.read`."""
        ready, _, _ = select.select([self.descriptor], [], [], wait_s)
        if not ready:
            return []
        try:
            piece = os.read(self.descriptor, PIECE)
        except BlockingIOError:  # whoever else reads it was faster
            return []
        return self._cutter.cut(piece) if piece else None

    def rest(self) -> list[Line]:
        """Return the last line, if it has no end."""
        return self._cutter.rest()


class GrowingFile:
    """A file to whose end others write; a line is read when it has its end."""

    def __init__(
        self, path: Path, last: Place | None = None, *, may_be_removed: bool = False
    ) -> None:
        """Go on behind the ``last`` line that was read of it; None: nothing was.

        Args:
            path: the file.
            last: the last line that was read of it.
            may_be_removed: whether it is whole, so that all of it can be read though its name
                is gone meanwhile.

        Raises:
            UserError: if that line is no longer there.
        """
        self.path, self._last, self._may_be_removed = path, last, may_be_removed
        self._cutter = LineCutter(path.name, *((last.line, last.end) if last else ()))
        self._file = path.open("rb")
        self._looked: tuple[int, int, int] | None = None  # size, time of change, bytes read
        self._refuse_other()

    def read(self, wait_s: float) -> list[Line] | None:
        """Return what has come; see `Input.read`."""
        self._refuse_other()
        piece = os.pread(self._file.fileno(), PIECE, self._cutter.read)
        if not piece:
            time.sleep(wait_s)
            return []
        lines = self._cutter.cut(piece)
        self._last = lines[-1].place if lines else self._last
        return lines

    @property
    def seen(self) -> int:
        """How many bytes have been read."""
        return self._cutter.read

    def rest(self) -> list[Line]:
        """Return the last line, if it has no end."""
        return self._cutter.rest()

    def _refuse_other(self) -> None:
        """Raise a UserError if the file is another one, or has lost what was read of it."""
        opened = os.fstat(self._file.fileno())
        try:
            here = opened if self._may_be_removed else self.path.stat()
        except FileNotFoundError:
            self._refuse("is not there any more")
        if (here.st_dev, here.st_ino) != (opened.st_dev, opened.st_ino):
            self._refuse("was replaced by another file")
        if here.st_size < self._cutter.read:
            self._refuse(f"has {here.st_size} bytes, of which {self._cutter.read} were read")
        found = (here.st_size, here.st_mtime_ns, self._cutter.read)
        if found == self._looked:  # a long line would be read again and again while it waits
            return
        self._looked = found
        if self._last is not None and not holds(self._file.fileno(), self._last):
            self._refuse(f"has another line {self._last.line} than when it was read")

    def _refuse(self, what: str) -> None:
        raise UserError(
            f"data.train: {self.path} {what}: a stream's file only grows; put it back, or start "
            "another run with the new one"
        )


class Done(Protocol):
    """Remembers which files of a folder were read, as `Names` does."""

    def add(self, kind: Literal["file"], name: str) -> None:
        """Remember a file."""
        ...

    def new(self, kind: Literal["file"], names: Iterable[str]) -> Iterator[str]:
        """Yield the names of those that were not read."""
        ...


class Folder:
    """A folder into which whole files are moved: each is read once, in the order of their names."""

    def __init__(self, path: Path, done: Done, last: Place | None = None) -> None:
        """Go on behind the ``last`` line that was read; files that are ``done`` are not read again.

        Raises:
            UserError: if that line's file has another line there.
        """
        self.path, self._done = path, done
        self._seen = 0  # of files that have been read to their ends
        self._file: GrowingFile | None = None
        if last is not None:
            self._file = self._opened(last.file, last)
            if self._file is None:  # there is nothing left of it
                self._done.add("file", last.file)

    @property
    def seen(self) -> int:
        """How many bytes and files have been read."""
        return self._seen + (0 if self._file is None else self._file.seen)

    def read(self, wait_s: float) -> list[Line] | None:
        """Return what the present file has, or the next that has something; see `Input.read`."""
        while (file := self._file or self._next()) is not None:
            self._file, before = file, file.seen
            lines = file.read(0) or []
            if file.seen > before:
                return lines
            self._done.add("file", file.path.name)
            self._seen, self._file = self._seen + file.seen + 1, None
            if rest := file.rest():
                return rest
        time.sleep(wait_s)
        return []

    def rest(self) -> list[Line]:
        """Return nothing: a file that is there is whole."""
        return []

    def _next(self) -> GrowingFile | None:
        """Open the next file; None: there is none."""
        while (name := min(self._names(), default=None)) is not None:
            if (file := self._opened(name)) is not None:
                return file
        return None

    def _names(self) -> Iterator[str]:
        """Yield the names of files that have not been read."""
        with os.scandir(self.path) as entries:
            ours = (e.name for e in entries if is_named_as_ours(e.name) and is_file(e))
            yield from self._done.new("file", ours)

    def _opened(self, name: str, last: Place | None = None) -> GrowingFile | None:
        """Open a file; None: it is gone, even if it was there just now."""
        try:
            return GrowingFile(self.path / name, last, may_be_removed=True)
        except FileNotFoundError:
            return None


def is_named_as_ours(name: str) -> bool:
    """Say whether a file of a folder is one that is read."""
    return name.lower().endswith(".jsonl") and not name.startswith(".")


def is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry of a folder is a file; one that leads nowhere is none."""
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


def holds(descriptor: int, place: Place) -> bool:
    """Say whether a file has the line that was read there."""
    begin, crc, found = place.begin, 0, b""
    while begin < place.end and (found := os.pread(descriptor, PIECE, begin)):
        piece = found[: place.end - begin]
        begin += len(piece)
        crc = zlib.crc32(piece.removesuffix(b"\n") if begin == place.end else piece, crc)
    return begin == place.end and crc == place.crc


def refuse_no_input(train: str) -> None:
    """Raise a UserError unless ``data.train`` names something that a stream can be read from."""
    if train == SENT:
        return
    if train == STDIN:
        if sys.stdin is None:  # the next file that is opened would be taken for it
            raise UserError(
                f'data.train = "{STDIN}": standard input is closed: give the run one, for example '
                "< questions.jsonl, or < /dev/null to go on without further questions"
            )
        return
    path = Path(train)
    if not path.exists():
        raise UserError(
            f"data.train = {train!r}: there is no such file or folder in {Path.cwd()}: make it, "
            'empty if nothing has come yet; "-" is standard input'
        )
    if path.is_dir():
        return
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(
            f"data.train = {train!r} is no file that could be read again: expected one that grows, "
            f'or a folder; set data.train = "-", and add < {train}'
        )
    if path.suffix.lower() != ".jsonl":
        raise UserError(
            f"data.train = {train!r}: expected a .jsonl file, one question per line, a folder of "
            'such files, or "-" for standard input'
        )
