"""Checkpoints: all that decides the rest of a run, on disk whole or not at all.

    checkpoints/step_00010/
        rank_00000.safetensors ...   each rank's shares of weights and moments, flat, in float32
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
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ttrl.config import CheckpointSettings
from ttrl.ranks import Ranks
from ttrl.types import UserError

T = TypeVar("T")

STATE = "state.json"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp"
FORMAT = 1
"""What a manifest says of the version of all this; a reader of another one refuses it."""
STEP_NAME = "step_([0-9]{5}|[1-9][0-9]{5,})"
"""As a regular expression, what all that belongs to a step is named; anything else is a user's."""
FOLDER_NAME = re.compile(f"{STEP_NAME}({re.escape(TEMPORARY)})?")


class Disk:
    """Every change that saving makes on disk: tests end the process, or fill the disk, in each."""

    def make_folder(self, path: Path) -> None:
        """Make it, and those that it is in."""
        path.mkdir(parents=True)

    def write(self, path: Path, content: bytes | dict[str, torch.Tensor]) -> None:
        """A new file: these bytes, or these tensors as safetensors."""
        if isinstance(content, bytes):
            path.write_bytes(content)
            return
        try:
            save_file(content, path)
        except SafetensorError as error:  # what a full disk becomes
            raise OSError(f"cannot write {path}: {error}") from error

    def sync(self, path: Path) -> None:
        """What was written into a file, or a folder's list of files, survives a power cut."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """At once: there is never both or neither."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """A folder and all in it; of a link, not what it points to."""
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


disk = Disk()


class IncompleteError(Exception):
    """Why a folder holds no complete checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    """Its folder."""
    step: int
    """After which training step it was taken."""
    ranks: int
    """How many ranks wrote it."""
    score: float | None
    """How good it was by ``checkpoint.best``; None if nobody asked, or it was no candidate."""

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
            if _sha256(path / name) != entry["sha256"]:
                raise IncompleteError(f"{name} differs from its SHA-256 in {MANIFEST}")
        return cls(path, manifest["step"], manifest["ranks"], manifest["score"])

    def state(self) -> dict[str, Any]:
        """What was saved beside the tensors."""
        with self.blamed(), _named(self.path / STATE) as path:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return state

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What cannot be used inside this context was wrong in the checkpoint: a UserError.

        Its digests are right, so it was not damaged but changed, by hand or by another program.
        """
        try:
            yield
        except (
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise UserError(
                f"{self.path} holds something else than ttrl saves: {type(error).__name__}: "
                f"{error}; remove that checkpoint, and an earlier one is used"
            ) from error

    def shares(
        self,
        kinds: Collection[str],
        sizes: Mapping[str, int],
        rank: int = 0,
        count: int = 1,
        may_lack: Collection[str] = (),
    ) -> dict[str, torch.Tensor]:
        """The shares of one of ``count`` ranks, however many have written it.

        Args:
            kinds: what to read: the first part of the keys ``KIND/NAME``.
            sizes: numbers of elements by NAME.
            rank: whose shares; with a ``count`` of 1, they are the whole.
            count: of how many.
            may_lack: kinds of which names, or all, may not have been saved; they are left out.

        Returns:
            Flat float32 tensors, all ranks' of the same length, so with zeros behind the last.

        Raises:
            UserError: if a tensor is missing, or has another type or length.
        """
        with self.blamed(), ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(self.path / _rank_file(r), "pt"))
                for r in range(self.ranks)
            ]
            saved = set(files[0].keys())
            shares = {}
            for kind in kinds:
                for name, size in sizes.items():
                    key = f"{kind}/{name}"
                    if key in saved or kind not in may_lack:
                        parts = [file.get_slice(key) for file in files]
                        _check(key, parts, size)
                        shares[key] = _cut(parts, size, rank, count)
            return shares


def own_share(whole: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """This rank's share of a tensor, as `Checkpoint.shares` counts them; a copy on the CPU."""
    flat = whole.detach().flatten()
    length = -(-flat.numel() // ranks.count)
    own = flat[ranks.rank * length : (ranks.rank + 1) * length]
    share = torch.zeros(length)
    share[: len(own)] = own
    return share


def _check(key: str, parts: Sequence[Any], size: int) -> None:
    """Raise a ValueError unless these slices of files are ``size`` numbers, as they were saved."""
    kinds = {(part.get_dtype(), len(part.get_shape())) for part in parts}
    if kinds != {("F32", 1)}:
        raise ValueError(f"{key} has the types and dimensions {kinds}, expected F32 and 1")
    if (numbers := sum(part.get_shape()[0] for part in parts)) < size:
        raise ValueError(f"{key} has {numbers} numbers, expected {size}")


def _cut(parts: Sequence[Any], size: int, rank: int, count: int) -> torch.Tensor:
    """One of ``count`` shares of the ``size`` numbers that are in ``parts``, one after another.

    The parts are slices of files: only what the share needs is read.
    """
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
    """The newest complete checkpoint in ``folder``, and what is wrong with each newer one.

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


def remove_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps than ``step``: none of them can be used."""
    for path in named_as_ours(folder):
        if _step(path) > step:
            disk.remove(path)


def named_as_ours(folder: Path) -> list[Path]:
    """What is named as a checkpoint, finished or not, by step; all else is left alone.

    Raises:
        OSError: if the folder is there and cannot be read, which `Path.glob` takes for empty.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    ours = [folder / name for name in names if FOLDER_NAME.fullmatch(name)]
    return sorted(ours, key=lambda path: (_step(path), is_finished(path)))


class Checkpoints:
    """Saves the checkpoints of a run, one at a time, and removes those that are not kept.

    A context: whatever ends the run, a save that has begun is finished.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, ranks: Ranks) -> None:
        """Save into ``folder``, which need not exist, in one that does and that all ranks see.

        Raises:
            UserError: on all ranks, if one of them does not see it.
        """
        ranks.gather(None)  # rank 0 has made it by now
        blind = [rank for rank, sees in enumerate(ranks.gather(folder.parent.is_dir())) if not sees]
        if blind and settings.every > 0:
            raise UserError(
                f"ranks {blind} do not see {folder.parent.absolute()}, where each saves its share "
                "of every checkpoint: name one on a disk that all machines share with --run-dir, "
                "or set checkpoint.every = 0"
            )
        self.folder = folder
        self.settings = settings
        self.ranks = ranks
        self._channel = ranks.apart()  # ours is another thread, whose messages must not mix
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def due(self, step: int, total: int) -> bool:
        """Whether to save after this step."""
        every = self.settings.every
        return every > 0 and (step % every == 0 or step == total)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        shares: Mapping[str, torch.Tensor],
        score: float | None,
    ) -> None:
        """Save what comes after ``step``; all ranks call this together.

        Args:
            step: names the checkpoint.
            state: JSON; rank 0's is saved.
            shares: copies of this rank's tensors, by KIND/NAME, which nobody changes any more.
            score: by ``checkpoint.best``; None if it is no candidate.

        Raises:
            UserError: if this one, or the one before, could not be written.
        """
        self.finish()
        self._step = step
        work = (step, dict(state), dict(shares), score)
        if self.settings.asynchronous:
            self._thread = threading.Thread(target=self._save, args=work, name="checkpoint")
            self._thread.start()
        else:
            self._save(*work)
            self._raise()

    def check(self) -> None:
        """Raise a UserError, on all ranks, if the last save is over and has failed."""
        if self._thread is not None and all(self.ranks.gather(not self._thread.is_alive())):
            self._raise()

    def finish(self) -> None:
        """Wait until the last save is on disk; raise a UserError, on all ranks, if it failed."""
        if self._thread is not None:
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        self._thread = None
        if self._error is not None:
            raise UserError(
                f"the checkpoint of step {self._step} could not be saved: {self._error}; the run "
                "ends here, and what was saved before is whole. Put that right, and continue with "
                "--resume"
            ) from self._error

    def _save(
        self,
        step: int,
        state: dict[str, Any],
        shares: dict[str, torch.Tensor],
        score: float | None,
    ) -> None:
        """All the writing; an error waits in ``_error``."""
        path = self.folder / f"step_{step:05d}"
        temporary = path.with_suffix(TEMPORARY)
        try:
            self._on_all(lambda: self._make_room(temporary))
            files = self._on_all(lambda: self._write_own(temporary, state, shares))
            manifest = {
                "format": FORMAT,
                "step": step,
                "ranks": self.ranks.count,
                "score": score,
                "files": {name: entry for part in files for name, entry in part.items()},
            }
            self._on_all(lambda: self._complete(temporary, path, manifest))
        except Exception as error:
            self._error = error

    def _on_all(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives on every rank; an error on one of them is an error on all."""
        done: list[T] = []
        failed = ""
        try:
            done.append(work())
        except Exception as error:
            failed = str(error) or type(error).__name__
        parts = self._channel.gather((done, failed))
        who = "rank {}: " if self.ranks.count > 1 else ""
        errors = [who.format(rank) + error for rank, (_, error) in enumerate(parts) if error]
        if errors:
            raise OSError("; ".join(errors))
        return [result for part, _ in parts for result in part]

    def _make_room(self, temporary: Path) -> None:
        """An empty folder, and no remains of saves that were not finished."""
        if self.ranks.is_main:
            for remains in named_as_ours(self.folder):
                if not is_finished(remains):
                    disk.remove(remains)
            disk.make_folder(temporary)

    def _write_own(
        self, folder: Path, state: dict[str, Any], shares: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        """This rank's files; what the manifest says of them."""
        contents: dict[str, bytes | dict[str, torch.Tensor]] = {_rank_file(self.ranks.rank): shares}
        if self.ranks.is_main:
            contents[STATE] = json.dumps(state, allow_nan=False).encode()
        return {name: _write(folder / name, content) for name, content in contents.items()}

    def _complete(self, temporary: Path, path: Path, manifest: dict[str, Any]) -> None:
        """What makes a checkpoint of the files, and then room."""
        if not self.ranks.is_main:
            return
        _write(temporary / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False).encode())
        disk.sync(temporary)
        disk.rename(temporary, path)
        for folder in (self.folder, self.folder.parent):
            disk.sync(folder)
        for old in superseded(self.folder, self.settings.keep):
            disk.rename(old, old.with_suffix(TEMPORARY))  # half a checkpoint must not look like one
            disk.remove(old.with_suffix(TEMPORARY))


def superseded(folder: Path, keep: int) -> list[Path]:
    """The checkpoints that are neither among the last ``keep`` nor the best."""
    best = best_of(folder)
    return [path for path in list(_manifests(folder))[:-keep] if path != best]


def best_of(folder: Path) -> Path | None:
    """The checkpoint with the highest score, the earliest of several; None if none has one."""
    scores = {path: manifest["score"] for path, manifest in _manifests(folder).items()}
    scored = [path for path, score in scores.items() if score is not None]
    return max(scored, key=scores.__getitem__, default=None)


def _manifests(folder: Path) -> dict[Path, dict[str, Any]]:
    """The manifests of all checkpoints that were completed, oldest first."""
    manifests = {}
    for path in named_as_ours(folder):
        with suppress(IncompleteError, UserError):  # one of another version is not ours to judge
            manifests[path] = _manifest(path)
    return manifests


def _manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint should consist of.

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
        known = found == FORMAT and _is_manifest(manifest, _step(path))
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
    """Whether a checkpoint of that step would have it; True is no number of ranks, nor is 2.0."""
    saved, ranks, score, files = (manifest[k] for k in ("step", "ranks", "score", "files"))
    if not (type(saved) is type(ranks) is int and saved == step and 1 <= ranks == len(files) - 1):
        return False
    if not (score is None or (type(score) is float and math.isfinite(score))):
        return False
    whole = {STATE, *map(_rank_file, range(ranks))}
    return files.keys() == whole and all(
        type(entry["bytes"]) is int and type(entry["sha256"]) is str for entry in files.values()
    )


def _write(path: Path, content: bytes | dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write a file that survives a power cut; what the manifest says of it."""
    disk.write(path, content)
    disk.sync(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with _named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """An OSError inside names this file; one from reading, as of a broken disk, names none."""
    try:
        yield path
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_finished(path: Path) -> bool:
    """Whether a checkpoint was written to the end, by its name."""
    return not path.name.endswith(TEMPORARY) and FOLDER_NAME.fullmatch(path.name) is not None


def _step(path: Path) -> int:
    """From the folder's name, also of one that is not finished; 0 if it is none of ours."""
    named = FOLDER_NAME.fullmatch(path.name)
    return int(named[1]) if named else 0
