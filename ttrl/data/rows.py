"""Raw rows from wherever questions may come from, each with its place in the source.

Nothing here knows what a question is: `ttrl.data.questions` checks the rows.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ttrl.data import arithmetic
from ttrl.settings import DataSettings
from ttrl.types import UserError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")

CONVERTERS = {
    ".arrow": "import datasets; datasets.Dataset.from_file({!r}).to_json('q.jsonl')",
    ".xlsx": "import pandas; pandas.read_excel({!r}).to_csv('q.csv', index=False)",
    ".xls": "import pandas; pandas.read_excel({!r}).to_csv('q.csv', index=False)",
    ".feather": "import pandas; pandas.read_feather({!r}).to_parquet('q.parquet')",
}
FOLDER_CONVERTER = "import datasets; datasets.load_from_disk({!r}).to_json('q.jsonl')"
"""A line of Python that makes a file that is read of a folder; `CONVERTERS` are for files."""


LONGEST_CELL = 2**31 - 1
"""Characters of a table's cell: too long a question is a row's fault, not the file's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the source holds it; nothing about it has been checked."""

    place: str
    """Where the row is: "line 3" (from 1, as editors count) of a .jsonl, .csv, .tsv or .txt file,
    "index 2" (from 0) of everything else."""
    value: Any
    """Content of the row, which should be a dictionary, or a question's text."""


class BadRow(Exception):
    """The row cannot be used; the message is the reason."""


class Spelled(float):
    """A number that is spelled, as text, as in its source: 0.00001, not 1e-05."""

    _text: str

    def __new__(cls, text: str) -> Self:
        """Make the number that ``text`` spells."""
        number = super().__new__(cls, text)
        number._text = text
        return number

    def __repr__(self) -> str:
        """Return the text as it is in the source."""
        return self._text

    __str__ = __repr__


def decimal(number: float | np.float32) -> str:
    """Return the shortest decimal fraction that means this number, without an exponent."""
    return np.format_float_positional(number, trim="0")


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row that cannot be used; as text it is one line, ``FILE:line 3: reason``."""

    source: str
    """The source as the settings name it."""
    place: str
    """The row's place, as in `Row`."""
    reason: str
    """What is wrong with the row."""

    def __str__(self) -> str:
        """Return the line ``FILE:line 3: reason``."""
        return f"{self.source}:{self.place}: {self.reason}"


def read_rows(source: str, settings: DataSettings) -> Iterator[Row | Rejection]:
    """Yield the rows of a source, in its order.

    Args:
        source: a file with one of `SUFFIXES`, "hub:OWNER/NAME" (with the subset, split and
            revision of the settings), "arithmetic:train" or "arithmetic:held_out".
        settings: only those of a hub data set are read.

    Yields:
        A row, or a rejection for a line that is not JSON, or has not as many cells as the header.

    Raises:
        UserError: the source does not exist, or cannot be read as a whole.
    """
    kind, _, name = source.partition(":")
    if kind == "arithmetic":
        return _numbered(_arithmetic_rows(source, name))
    if kind == "hub":
        return _numbered(_hub_rows(source, name, settings))
    refuse_no_file(source)
    path = Path(source)
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl_rows(source)
        case ".csv":
            return _csv_rows(source, ",")
        case ".tsv":
            return _csv_rows(source, "\t")
        case ".txt":
            return _txt_rows(path)
        case ".json":
            return _numbered(_json_rows(path))
    return _numbered(_parquet_rows(path))


def refuse_no_file(source: str) -> None:
    """Raise a UserError for a file that is not there, or of no kind that is read."""
    if source.partition(":")[0] in ("arithmetic", "hub"):
        return
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"unknown data source {source!r}{_near(suffix, SUFFIXES)}: expected a file that ends "
            f'in {", ".join(SUFFIXES)}, "hub:OWNER/NAME", or "arithmetic:train"{_conversion(path)}'
        )
    if not path.is_file():
        beside = [p for p in path.parent.glob("*") if p.is_file()]
        siblings = [str(p) for p in beside if p.suffix.lower() in SUFFIXES]
        where = "" if path.is_absolute() else f", neither beside the recipe nor in {Path.cwd()}"
        raise UserError(f"no file at {source}{_near(source, siblings)}{where}")


def _conversion(path: Path) -> str:
    """Say how to convert a file that cannot be read to one that can; "" if it is not known."""
    line = FOLDER_CONVERTER if path.is_dir() else CONVERTERS.get(path.suffix.lower())
    if line is None or not path.name or not path.exists():
        return ""
    return f'; to convert it: python -c "{line.format(str(path))}"'


def _numbered(values: Iterable[Any]) -> Iterator[Row]:
    return (Row(f"index {i}", value) for i, value in enumerate(values))


def _jsonl_rows(source: str) -> Iterator[Row | Rejection]:
    # Split at line feeds only: JSON strings may hold the other characters that end a line.
    for number, line in enumerate(_read(Path(source)).split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            yield Row(place, parse_json(line.decode("utf-8")))
        except json.JSONDecodeError as error:
            yield Rejection(source, place, f"not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # not UTF-8, too long a number, too deep
            yield Rejection(source, place, f"not JSON: {error}")


def _json_rows(path: Path) -> list[Any]:
    text = _text(path)
    try:
        rows = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}; if it holds one object per line, name it .jsonl"
        ) from error
    if not isinstance(rows, list):
        keys = list(rows)[:5] if isinstance(rows, dict) else []
        raise UserError(
            f"{path} holds a JSON {type(rows).__name__}, expected a list of objects or texts: "
            "[{...}, ...]"
            + f"; its keys are {keys}: save the list of rows alone, as a file of its own"
            * bool(keys)
        )
    return rows


def parse_json(text: str) -> Any:
    """Parse JSON text; its numbers keep their spelling."""
    return json.loads(text, parse_float=Spelled)


def _txt_rows(path: Path) -> Iterator[Row]:
    """Yield one question a line."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield Row(f"line {number}", line.removesuffix("\r"))


def _csv_rows(source: str, delimiter: str) -> Iterator[Row | Rejection]:
    """Yield the rows under a header; a quoted cell may hold line breaks, and any length."""
    csv.field_size_limit(LONGEST_CELL)  # of the whole process, 131,072 until then
    lines = csv.reader(
        io.StringIO(_text(Path(source)), newline=""), delimiter=delimiter, strict=True
    )
    header: list[str] = []
    begun = 1
    try:
        for cells in lines:
            place, begun = f"line {begun}", lines.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise UserError(f"{source}: two columns have the same name: {header}")
            elif len(cells) == len(header):
                yield Row(place, dict(zip(header, cells, strict=True)))
            else:
                yield Rejection(
                    source,
                    place,
                    f"{len(cells)} cells, but the header has {len(header)}: a cell that holds "
                    f"{delimiter!r} or a line break needs double quotes around it",
                )
    except csv.Error as error:
        raise UserError(f"{source}: not a table, at line {lines.line_num}: {error}") from error


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def _read(path: Path) -> bytes:
    """Read a file without its UTF-8 byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16 text, expected UTF-8: save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file: {_first_line(error)}") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    for column in table.schema:
        if column.type == pyarrow.float32():  # as a Python float, 0.1 is 0.10000000149011612
            for row in rows:
                if (value := row[column.name]) is not None:
                    row[column.name] = Spelled(decimal(np.float32(value)))
    return rows


def _hub_rows(source: str, name: str, settings: DataSettings) -> Iterable[Any]:
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{source!r} names no hub data set: expected hub:OWNER/NAME")
    import datasets  # type: ignore[import-untyped]

    try:
        rows: Iterable[Any] = datasets.load_dataset(
            name, settings.subset, split=settings.split, revision=settings.revision
        )
    except Exception as error:
        # Its HTTP client, file systems and builders each raise errors of their own: all of them
        # mean that the data set could not be had.
        raise UserError(
            f"cannot load {source} (data.split = {settings.split!r}, data.subset = "
            f"{settings.subset!r}, data.revision = {settings.revision!r}): {_first_line(error)}; "
            "check these settings and the network, or download the data set and give its file"
        ) from error
    return rows


def _arithmetic_rows(source: str, split: str) -> list[dict[str, str | int]]:
    if split not in arithmetic.SPLITS:
        raise UserError(
            f"unknown split of the arithmetic task: {source!r}{_near(split, arithmetic.SPLITS)}: "
            f"expected one of {', '.join(f'arithmetic:{s}' for s in arithmetic.SPLITS)}"
        )
    return arithmetic.question_rows(split)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
