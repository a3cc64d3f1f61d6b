"""Saving checkpoints while a run goes on; what one is on disk is in `ttrl.run.checkpoint`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ttrl.run.checkpoint import (
    FORMAT,
    MANIFEST,
    STATE,
    TEMPORARY,
    best_of,
    completed,
    is_finished,
    named_as_ours,
    rank_file,
    sha256_of,
    step_of,
)
from ttrl.run.disk import disk
from ttrl.settings import CheckpointSettings
from ttrl.types import UserError

if TYPE_CHECKING:  # a run that cannot go on is refused before torch is imported
    import torch

    from ttrl.system.ranks import Ranks

T = TypeVar("T")


class Checkpoints:
    """Saves the checkpoints of a run, one at a time, and removes those that are not kept.

    A context: whatever ends the run, a save that has begun is finished.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, ranks: Ranks) -> None:
        """Save into ``folder``, which need not exist, in one that does and that all ranks see.

        Raises:
            UserError: on all ranks, if one of them does not see it.
        """
        if settings.every > 0:
            refuse_separate_disks(folder.parent, ranks)
        self.folder = folder
        self.settings = settings
        self.ranks = ranks
        self._channel = ranks.own_group()  # ours is another thread, whose messages must not mix
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        """Return the checkpoints, whose last save the context waits for."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for a save that has begun."""
        if self._thread is not None:
            self._thread.join()

    def due(self, step: int, total: int | None) -> bool:
        """Say whether to save after this step, of so many; None: of nobody knows how many."""
        every = self.settings.every
        return every > 0 and (step % every == 0 or step == total)

    def due_after_all(self, step: int) -> bool:
        """Say whether to save after a step that has turned out to be the last."""
        return self.due(step, step) and not self.due(step, None)

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
            shares: copies of this rank's tensors, by PART/KIND/NAME, which nobody changes any more.
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
                "ends here, and what was saved before is whole; put that right"
            ) from self._error

    def _save(
        self,
        step: int,
        state: dict[str, Any],
        shares: dict[str, torch.Tensor],
        score: float | None,
    ) -> None:
        """Do all the writing; an error waits in ``_error``."""
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
        """Return what ``work`` gives on every rank; an error on one is an error on all."""
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
        """Make an empty folder, and remove what is left of saves that were not finished."""
        if self.ranks.is_main:
            for remains in named_as_ours(self.folder):
                if not is_finished(remains):
                    disk.remove(remains)
            disk.make_folder(temporary)

    def _write_own(
        self, folder: Path, state: dict[str, Any], shares: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Write this rank's files; return what the manifest says of them."""
        contents: dict[str, bytes | dict[str, torch.Tensor]] = {rank_file(self.ranks.rank): shares}
        if self.ranks.is_main:
            contents[STATE] = json.dumps(state, allow_nan=False).encode()
        return {name: _write(folder / name, content) for name, content in contents.items()}

    def _complete(self, temporary: Path, path: Path, manifest: dict[str, Any]) -> None:
        """Make a checkpoint of the files, and remove those that are no longer kept."""
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


def refuse_separate_disks(folder: Path, ranks: Ranks) -> None:
    """Raise a UserError, on all ranks, unless all of them see ``folder``."""
    blind = [rank for rank, sees in enumerate(ranks.gather(folder.is_dir())) if not sees]
    if blind:
        raise UserError(
            f"ranks {blind} do not see {folder.absolute()}, where each has its share of every "
            "checkpoint: name a folder on a disk that all machines share with --run-dir, or set "
            "checkpoint.every = 0"
        )


def superseded(folder: Path, keep: int) -> list[Path]:
    """List the checkpoints that are neither among the last ``keep`` nor the best."""
    best = best_of(folder)
    return [path for path in list(completed(folder))[:-keep] if path != best]


def remove_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps than ``step``: none of them can be used."""
    for path in named_as_ours(folder):
        if step_of(path) > step:
            disk.remove(path)


def _write(path: Path, content: bytes | dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write a file that survives a power cut; return what the manifest says of it."""
    disk.write(path, content)
    disk.sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
