"""Checkpoints: all that decides the rest of a run, on disk whole or not at all.

    checkpoints/step_00010/
        rank_00000.safetensors ...   each rank's shards of weights and moments, flat, in float32
        state.json                   everything else
        manifest.json                size and SHA-256 of all other files; written last

A checkpoint is written into ``step_00010.tmp``, which becomes ``step_00010`` when all of it is on
disk. It is complete if its files are those of its manifest, and only then is it read. Tensors are
in safetensors files and everything else is JSON: reading one cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ttrl.system.paths import STEP_NAME
from ttrl.types import UserError

if TYPE_CHECKING:
    import torch

STATE = "state.json"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp"
FORMAT = 2
"""The version of this format, which a manifest states; a reader of another one refuses it."""
REASON = 300
"""Characters of an error that are shown, at most."""
FOLDER_NAME = re.compile(f"{STEP_NAME}({re.escape(TEMPORARY)})?")


class IncompleteError(Exception):
    """A folder holds no complete checkpoint; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    """The checkpoint's folder."""
    step: int
    """The training step after which it was taken."""
    ranks: int
    """The number of ranks that wrote it."""
    score: float | None
    """Score by ``checkpoint.best``; None if nobody asked, or it was no candidate."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read all files of a checkpoint once, and compare them with its manifest.

        Raises:
            IncompleteError: if anything is missing or differs.
            OSError: if it may be whole, and cannot be read.
            UserError: if another version of ttrl has written it.
        """
        manifest = _manifest(path)
        for name, entry in manifest["files"].items():
            try:
                size = (path / name).stat().st_size
            except FileNotFoundError:
                raise IncompleteError(f"{name} is missing") from None
            if size != entry["bytes"]:
                raise IncompleteError(f"{name} has {size} bytes, expected {entry['bytes']}")
            if sha256_of(path / name) != entry["sha256"]:
                raise IncompleteError(f"{name} differs from its SHA-256 in {MANIFEST}")
        return cls(path, manifest["step"], manifest["ranks"], manifest["score"])

    def state(self) -> dict[str, Any]:
        """Return what was saved beside the tensors."""
        with self.errors_as_user_error(), _named(self.path / STATE) as path:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return state

    @contextmanager
    def errors_as_user_error(self) -> Iterator[None]:
        """Turn an error of using the checkpoint inside this context into a UserError.

        The checkpoint's digests are right, so it was not damaged but changed, by hand or by another
        program.
        """
        import torch

        try:
            yield
        except torch.OutOfMemoryError:  # a RuntimeError, for which it can do nothing
            raise
        except (
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = " ".join(str(error).split())  # in a line: pydantic's are many
            raise UserError(
                f"{self.path} holds something else than ttrl saves: {type(error).__name__}: "
                f"{reason[:REASON]}; remove that checkpoint, and an earlier one is used"
            ) from error

    def shards(
        self, sizes: Mapping[str, int], rank: int = 0, count: int = 1
    ) -> dict[str, torch.Tensor]:
        """Read the shards of one of ``count`` ranks, however many have written it.

        Args:
            sizes: numbers of elements, whole, by the keys that were saved (PART/KIND/NAME).
            rank: whose shards; with a ``count`` of 1, they are the whole.
            count: of how many.

        Returns:
            Flat float32 tensors, all ranks' of the same length, so with zeros behind the last.

        Raises:
            UserError: if a tensor is missing, or has another type or length.
        """
        with self.errors_as_user_error(), ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(self.path / rank_file(r), "pt"))
                for r in range(self.ranks)
            ]
            shards = {}
            for key, size in sizes.items():
                parts = [file.get_slice(key) for file in files]
                _check(key, parts, size)
                shards[key] = _cut(parts, size, rank, count)
            return shards


def _check(key: str, parts: Sequence[Any], size: int) -> None:
    """Raise a ValueError unless these slices of files are ``size`` numbers, as they were saved."""
    kinds = {(part.get_dtype(), len(part.get_shape())) for part in parts}
    if kinds != {("F32", 1)}:
        raise ValueError(f"{key} has the types and dimensions {kinds}, expected F32 and 1")
    if (numbers := sum(part.get_shape()[0] for part in parts)) < size:
        raise ValueError(f"{key} has {numbers} numbers, expected {size}")


def _cut(parts: Sequence[Any], size: int, rank: int, count: int) -> torch.Tensor:
    """Read one of ``count`` shares of the ``size`` numbers in ``parts``, one after another.

    The parts are slices of files: only what the share needs is read.
    """
    import torch

    length = -(-size // count)
    begin, end = rank * length, min((rank + 1) * length, size)
    share = torch.zeros(length)
    offset = 0
    for part in parts:
        there = part.get_shape()[0]
        first, last = max(begin, offset), min(end, offset + there)
        if first < last:
            share[first - begin : last - begin] = part[first - offset : last - offset]
        offset += there
    return share


def find_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest complete checkpoint in ``folder``, and what is wrong with each newer one.

    Raises:
        OSError: if one that may be complete cannot be read: it must not be taken for lost.
        UserError: if another version of ttrl has written one.
    """
    problems: list[str] = []
    for path in reversed(named_as_ours(folder)):
        try:
            return Checkpoint.open(path), problems
        except IncompleteError as error:
            problems.append(f"{path.name}: {error}")
    return None, problems


def named_as_ours(folder: Path) -> list[Path]:
    """List what is named as a checkpoint, finished or not, by step; all else is left alone.

    Raises:
        OSError: if the folder is there and cannot be read, which `Path.glob` takes for empty.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    ours = [folder / name for name in names if FOLDER_NAME.fullmatch(name)]
    return sorted(ours, key=lambda path: (step_of(path), is_finished(path)))


def best_of(folder: Path) -> Path | None:
    """Return the checkpoint with the highest score, the earliest of several; None without one."""
    scores = {path: manifest["score"] for path, manifest in completed(folder).items()}
    scored = [path for path, score in scores.items() if score is not None]
    return max(scored, key=scores.__getitem__, default=None)


def completed(folder: Path) -> dict[Path, dict[str, Any]]:
    """Read the manifests of all checkpoints that were completed, oldest first."""
    manifests = {}
    for path in named_as_ours(folder):
        with suppress(IncompleteError, UserError):  # one of another version is not ours to judge
            manifests[path] = _manifest(path)
    return manifests


def _manifest(path: Path) -> dict[str, Any]:
    """Read what a checkpoint should consist of.

    Raises:
        IncompleteError: if it does not say so.
        OSError: if it cannot be read.
        UserError: if it is of another version of ttrl.
    """
    if not is_finished(path):
        raise IncompleteError("its writing was not finished")
    try:
        with _named(path / MANIFEST) as file:
            manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = manifest.get("format")
        known = found == FORMAT and _is_manifest(manifest, step_of(path))
    except (FileNotFoundError, NotADirectoryError):
        raise IncompleteError(f"it has no {MANIFEST}") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise IncompleteError(f"{MANIFEST} cannot be read: {error!r}") from error
    if found != FORMAT:
        raise UserError(
            f"{path} is a checkpoint of another version of ttrl: its {MANIFEST} says format "
            f"{found!r}, expected {FORMAT}; use that version"
        )
    if not known:
        raise IncompleteError(f"{MANIFEST} is not that of this checkpoint")
    return manifest


def _is_manifest(manifest: Mapping[str, Any], step: int) -> bool:
    """Say whether a step's checkpoint would have this manifest; True and 2.0 count no ranks."""
    saved, ranks, score, files = (manifest[k] for k in ("step", "ranks", "score", "files"))
    if not (type(saved) is type(ranks) is int and saved == step and 1 <= ranks == len(files) - 1):
        return False
    if not (score is None or (type(score) is float and math.isfinite(score))):
        return False
    whole = {STATE, *map(rank_file, range(ranks))}
    return files.keys() == whole and all(
        type(entry["bytes"]) is int and type(entry["sha256"]) is str for entry in files.values()
    )


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with _named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rank_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Let an OSError inside name this file; one from reading, as of a broken disk, names none."""
    try:
        yield path
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_finished(path: Path) -> bool:
    """Say whether a checkpoint was written to the end, by its name."""
    return not path.name.endswith(TEMPORARY) and FOLDER_NAME.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """Return the step in a folder's name, also of an unfinished one; 0 if it is none of ours."""
    named = FOLDER_NAME.fullmatch(path.name)
    return int(named[1]) if named else 0
