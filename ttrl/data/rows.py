"""Raw rows from wherever questions may come from, each with its place in the source.

Nothing here knows what a question is: `ttrl.data.questions` checks the rows.
"""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttrl.config import DataSettings
from ttrl.data import arithmetic
from ttrl.types import UserError

SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the source holds it; nothing about it has been checked."""

    place: str
    """Where it is: "line 3" (from 1, as editors count) of a .jsonl file, "index 2" (from 0) of
    everything else."""
    value: Any
    """Should be a dictionary."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row that cannot be used; as text it is one line, ``FILE:line 3: reason``."""

    source: str
    """The source as the settings name it."""
    place: str
    """As in `Row`."""
    reason: str
    """What is wrong with it."""

    def __str__(self) -> str:
        return f"{self.source}:{self.place}: {self.reason}"


def read_rows(source: str, settings: DataSettings) -> Iterator[Row | Rejection]:
    """The rows of a source, in its order.

    Args:
        source: a .jsonl, .json or .parquet file, "hub:OWNER/NAME" (with the subset, split and
            revision of the settings), "arithmetic:train" or "arithmetic:held_out".
        settings: only those of a hub data set are read.

    Yields:
        A row, or a rejection for a line of a .jsonl file that is not JSON.

    Raises:
        UserError: the source does not exist, or cannot be read as a whole.
    """
    kind, _, name = source.partition(":")
    if kind == "arithmetic":
        return _numbered(_arithmetic_rows(source, name))
    if kind == "hub":
        return _numbered(_hub_rows(source, name, settings))
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"unknown data source {source!r}{_near(suffix, SUFFIXES)}: expected a file that ends "
            f'in {", ".join(SUFFIXES)}, "hub:OWNER/NAME", or "arithmetic:train"'
        )
    if not path.is_file():
        beside = [p for p in path.parent.glob("*") if p.is_file()]
        siblings = [str(p) for p in beside if p.suffix.lower() in SUFFIXES]
        raise UserError(f"no file at {source}{_near(source, siblings)}")
    if suffix == ".jsonl":
        return _jsonl_rows(source)
    return _numbered(_json_rows(path) if suffix == ".json" else _parquet_rows(path))


def _numbered(values: Iterable[Any]) -> Iterator[Row]:
    return (Row(f"index {i}", value) for i, value in enumerate(values))


def _jsonl_rows(source: str) -> Iterator[Row | Rejection]:
    # Split at line feeds only: JSON strings may hold the other characters that end a line.
    for number, line in enumerate(_read(Path(source)).split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            yield Row(place, json.loads(line.decode("utf-8")))
        except json.JSONDecodeError as error:
            yield Rejection(source, place, f"not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # not UTF-8, too long a number, too deep
            yield Rejection(source, place, f"not JSON: {error}")


def _json_rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(_read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}; if it holds one object per line, name it .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise UserError(
            f"{path} holds a JSON {type(rows).__name__}, expected a list of objects: [{{...}}, ...]"
        )
    return rows


def _read(path: Path) -> bytes:
    """The file without its UTF-8 byte order mark."""
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
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file: {_first_line(error)}") from error
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
