"""The inbox of a stream: questions that were accepted, on disk, in the order of their arrival.

    stream/questions.jsonl   {"number": 1, "id": "q1", "read": 1, "file": ..., "row": {...}}
    stream/refused.jsonl     {"read": 2, "file": ..., "reason": "...", "text": "..."}

Every line that is read of an input ends up in one of them, with its place there: so they also say
how far the input has been read. A row may hold a reference answer. It stays in the row, and in the
answer key for metrics; no `Question` has it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from ttrl.data.questions import ReadQuestion
from ttrl.data.rows import BadRow, Row, parse_json
from ttrl.settings.serve_rules import SENT
from ttrl.stream.appended import AppendedFile, json_line
from ttrl.stream.lines import LONGEST, Line, Place
from ttrl.stream.names import Kind, Names

END = {"end_of_stream": True}
"""The line that ends a stream."""
DEEPEST = 64
"""Lists and objects inside each other in a row, at most: its line is read again inside another."""
PLACED = {"read": int, "file": str, "line": int, "begin": int, "end": int, "crc": int}
"""What every line that is kept has: which it was of all, and its `Place`."""
SHOWN = 200
"""Characters of a refused line that are kept."""

LONGEST_ID = 256
"""Characters of an id, at most."""

Read = Callable[[Row], ReadQuestion]
"""Function that makes a question of a row, or raises a `BadRow`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an input has been read."""

    last: Place | None = None
    """The last line; None: nothing has been read."""
    lines: int = 0
    """Number of lines, without blank ones."""


class Sent(NamedTuple):
    """A row that was sent, and can be asked."""

    line: Line
    """As it came."""
    value: Any
    """What it says."""
    name: str
    """The id that it has, or would be given."""


class NotJson(BadRow):
    """A text that is no JSON; its cause says what is wrong with it."""


class TakenId(BadRow):
    """A row whose id another row has."""


class QueueFull(Exception):
    """So many questions wait for their answers that no other is accepted."""


class Inbox:
    """Accepts questions from one thread, while another takes them in their order."""

    def __init__(self, folder: Path, read: Read) -> None:
        """Keep questions in ``folder``, which is there; `open` comes first.

        Args:
            folder: where the two files are.
            read: is asked by the thread that accepts.
        """
        self._accepted = AppendedFile(
            folder / "questions.jsonl", {"number": int, "id": str, "row": object, **PLACED}
        )
        self._refused = AppendedFile(folder / "refused.jsonl", PLACED)
        self._read = read
        self.count = 0
        """The number of questions that were accepted."""
        self.names = Names(folder)
        """Ids of the questions, and names of the files that lines were read of."""
        self.progress = Progress()
        """How far the input has been read."""

    def open(self) -> None:
        """Read what an earlier process has left.

        Raises:
            UserError: if it is not ours.
        """
        self.names.add_all(self._opened())

    def close(self) -> None:
        """Accept nothing more."""
        self.names.close()

    def take(self, line: Line) -> bool:
        """Accept or refuse a line, on disk when this returns; a blank one is neither.

        Returns:
            Whether this line ends the stream.
        """
        if not line.text.strip():
            return False
        try:
            value = _value(line.text, is_cut=line.is_cut)
            if value == END and value["end_of_stream"] is True:  # which 1 is equal to
                return True
            name = self._id(value)
            if self._number(name) is not None:
                raise TakenId(f"the id {name!r} was accepted before; a question is answered once")
            self._accept(line, name)
        except BadRow as error:
            shown = line.text[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
            record = {**self._place(line), "reason": str(error), "text": shown}
            with self.names.adding("file", line.place.file):
                self._refused.append(json_line(record))
            self._go_on(record)
        return False

    def checked(self, row: bytes) -> Sent:
        """Check a row that was sent; nothing changes.

        Args:
            row: JSON.

        Raises:
            NotJson: if it is none.
            BadRow: if it cannot be asked.
        """
        value = _value(row, is_cut=len(row) > LONGEST)
        # It is kept in one line. JSON has line ends between its parts only, where a blank means
        # the same.
        text = row.replace(b"\r", b" ").replace(b"\n", b" ")
        line = Line(text, Place(SENT, self.progress.lines + 1, 0, 0, zlib.crc32(text)))
        return Sent(line, value, self._id(value))

    def accept(self, sent: Sent, has_room: Callable[[], bool]) -> tuple[int, bool]:
        """Accept a row that was `checked`, on disk when this returns.

        A row that is sent again is the same question, if it has an id.

        Args:
            sent: the row.
            has_room: says whether another question may be accepted.

        Returns:
            The question's number, and whether it is new.

        Raises:
            TakenId: if another row has its id.
            QueueFull: if it is new, and there is no room.
        """
        line, value, name = sent
        if (number := self._number(name)) is None:
            if not has_room():
                raise QueueFull
            self._accept(line, name)
            return self.count, True
        if _spelled(self._record(number)["row"]) != _spelled(value):
            raise TakenId(f"the id {name!r} is that of another question, number {number}")
        return number, False

    def question(self, number: int, read: Read) -> ReadQuestion:
        """Read an accepted question again, counted from 1, with the id that it was given."""
        record = self._record(number)
        found = read(Row(f"stream {number}", record["row"]))
        return replace(found, question=replace(found.question, id=record["id"]))

    def _id(self, value: Any) -> str:
        """Return the id of a row that can be asked; one without it gets a name that is free.

        Raises:
            BadRow: if it cannot be asked, or has an id that cannot be shown.
        """
        own = f"stream-{self.count + 1}"
        read = self._read(Row(own.replace("-", " "), value))
        name = read.question.id
        if len(name) > LONGEST_ID or not name.isprintable():
            raise BadRow(
                f"the id {name[:40]!r} ...: expected at most {LONGEST_ID} characters, all printable"
            )
        if not read.is_named and self._number(name) is not None:  # somebody's question is called so
            return next(n for i in count(2) if self._number(n := f"{own}-{i}") is None)
        return name

    def _number(self, name: str) -> int | None:
        return self.names.find("id", name)

    def _record(self, number: int) -> dict[str, Any]:
        found = self._accepted.first("number", number)
        if found is None or found["number"] != number:
            self._accepted.refuse(f"question {number} is missing")
        return found

    def _opened(self) -> Iterator[tuple[Kind, str, int]]:
        """Go through what there is; yield its names."""
        for record in self._accepted.open():
            if record["number"] != self.count + 1:
                self._accepted.refuse(f"question {record['number']} behind question {self.count}")
            self.count += 1
            yield "id", record["id"], self.count
            yield from self._file_of(record)
        for record in self._refused.open():
            yield from self._file_of(record)

    def _file_of(self, record: dict[str, Any]) -> Iterator[tuple[Kind, str, int]]:
        yield "file", record["file"], 0
        self._go_on(record)

    def _accept(self, line: Line, name: str) -> None:
        record = {"number": self.count + 1, "id": name, **self._place(line)}
        row = line.text.strip().decode()  # as it came: its numbers keep their spelling
        head = json_line(record).decode().rstrip("}\n")
        with (
            self.names.adding("file", line.place.file),
            self.names.adding("id", name, self.count + 1),
        ):
            self._accepted.append(f'{head}, "row": {row}}}\n'.encode())
        self.count += 1
        self._go_on(record)

    def _place(self, line: Line) -> dict[str, Any]:
        return {"read": self.progress.lines + 1, **line.place.as_json()}

    def _go_on(self, record: dict[str, Any]) -> None:
        if record["read"] > self.progress.lines:  # else the other file has later ones
            self.progress = Progress(Place.of(record), record["read"])


_PLAIN = (str, int, float, type(None))


def _spelled(value: Any) -> str:
    """Write a row in one way, by which it is known again: NaN is not even equal to itself."""
    return json.dumps(value, sort_keys=True)


def _value(text: bytes, *, is_cut: bool) -> Any:
    """Parse a line, or what is sent.

    Raises:
        BadRow: if it is too long or too deep, and a `NotJson` if it is no JSON.
    """
    if is_cut:
        raise BadRow(f"longer than {LONGEST} bytes")
    try:
        value = parse_json(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too long a number, too deep
        raise NotJson(f"not JSON: {error}") from error
    level = [value]
    for _ in range(DEEPEST):
        inner = (x.values() if isinstance(x, dict) else x for x in level)
        level = [y for x in inner if not isinstance(x, _PLAIN) for y in x]
    if level:
        raise BadRow(f"more than {DEEPEST} lists and objects inside each other")
    return value
