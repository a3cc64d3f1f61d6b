"""Remembers names on disk: a stream's may be more than memory holds."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EIO
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.parse import quote

Kind = Literal["id", "file"]
"""What is named: a question, or a file that lines were read of."""
AT_ONCE = 500
"""Names that are looked up together: SQLite takes so many values in a statement."""


class Names:
    """Names with a number each, in a file without a name, which is gone with its process.

    They follow from what else is in the folder, so a run that goes on adds them again. Of a name a
    digest is kept: it may be long. Several threads use it at once.
    """

    def __init__(self, folder: Path) -> None:
        """Begin without any, in a folder that is there.

        Raises:
            OSError: if the disk is full.
        """
        self._path, self._lock = folder / "names.tmp", threading.Lock()
        self._path.unlink(missing_ok=True)
        with self._errors():
            # A process has the folder for itself: nothing is locked, which some disks cannot do.
            uri = f"file:{quote(os.fsencode(self._path.absolute()))}?vfs=unix-none"
            self._base = sqlite3.connect(
                uri, uri=True, check_same_thread=False, isolation_level=None
            )
            for pragma in ("journal_mode = MEMORY", "synchronous = OFF"):
                self._base.execute(f"PRAGMA {pragma}")
            self._base.execute(
                "CREATE TABLE names (digest BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID"
            )
        self._path.unlink()

    def find(self, kind: Kind, name: str) -> int | None:
        """Return the number of a name; None: it has none."""
        row = self._run("SELECT number FROM names WHERE digest = ?", _digest(kind, name))
        return None if row is None else int(row[0])

    def add(self, kind: Kind, name: str, number: int = 0) -> None:
        """Give a name its number, in the place of one that it has.

        Raises:
            OSError: if the disk is full; then nothing has changed.
        """
        self._run("INSERT OR REPLACE INTO names VALUES (?, ?)", _digest(kind, name), number)

    def add_all(self, named: Iterable[tuple[Kind, str, int]]) -> None:
        """Give many names their numbers, as fast as they come."""
        with self._lock, self._errors():
            self._base.execute("BEGIN")
            rows = ((_digest(kind, name), number) for kind, name, number in named)
            try:
                self._base.executemany("INSERT OR REPLACE INTO names VALUES (?, ?)", rows)
            except BaseException:
                if self._base.in_transaction:  # a full disk has ended it already
                    self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    @contextmanager
    def adding(self, kind: Kind, name: str, number: int = 0) -> Iterator[None]:
        """Add a name that is new, and forget it if the context raises."""
        if self.find(kind, name) is not None:
            yield
            return
        self.add(kind, name, number)
        try:
            yield
        except BaseException:
            self._run("DELETE FROM names WHERE digest = ?", _digest(kind, name))
            raise

    def new(self, kind: Kind, names: Iterable[str]) -> Iterator[str]:
        """Yield those names that have no number, in their order."""
        left = iter(names)
        while some := list(islice(left, AT_ONCE)):
            digests = [_digest(kind, name) for name in some]
            places = ", ".join("?" * len(digests))
            asked = f"SELECT digest FROM names WHERE digest IN ({places})"
            with self._lock, self._errors():
                known = {row[0] for row in self._base.execute(asked, digests)}
            yield from (n for n, digest in zip(some, digests, strict=True) if digest not in known)

    def close(self) -> None:
        """Give its space on the disk back."""
        with self._lock:
            self._base.close()

    def _run(self, statement: str, *values: bytes | int) -> tuple[int] | None:
        with self._lock, self._errors():
            row: tuple[int] | None = self._base.execute(statement, values).fetchone()
            return row

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:  # a full disk, above all
            raise OSError(EIO, str(error), str(self._path)) from error


def _digest(kind: Kind, name: str) -> bytes:
    text = name.encode("utf-8", "surrogatepass")  # names of files may be no UTF-8
    return hashlib.blake2b(text, digest_size=16, person=kind.encode()).digest()
