"""A save that is stopped anywhere, and a disk that is full: nothing half-written is ever read."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ttrl.run import saving as module
from ttrl.run.checkpoint import find_newest
from ttrl.run.disk import Disk
from ttrl.run.saving import Checkpoints
from ttrl.settings import CheckpointSettings
from ttrl.system.ranks import Ranks
from ttrl.types import UserError

SHARES = {f"weights/{name}": torch.arange(1000.0) + i for i, name in enumerate("abc")}
SETTINGS = CheckpointSettings(keep=1, asynchronous=False)
CHANGES = ("make_folder", "write", "sync", "rename", "remove")


class FaultyDisk(Disk):
    """A disk whose ``at``-th change, counted from 0, is the ``fault``; it also names them."""

    def __init__(self, at: int = -1, fault: Callable[[str, Path], None] | None = None) -> None:
        self.at, self.fault = at, fault
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in CHANGES:
            return found

        def change(path: Path, *more: Any) -> None:
            self.seen.append(f"{name} {path.name}")
            if len(self.seen) - 1 == self.at and self.fault is not None:
                if name == "write":  # as far as it came
                    found(path, *more)
                    os.truncate(path, path.stat().st_size // 2)
                self.fault(name, path)
            found(path, *more)

        return change


def _save(folder: Path, step: int) -> None:
    """What is saved after ``step``, which its numbers say as well."""
    shares = {key: tensor + step for key, tensor in SHARES.items()}
    Checkpoints(folder, SETTINGS, Ranks()).save(step, {"step": step}, shares, None)


def _changes() -> list[str]:
    """What saving step 2 after step 1 changes on disk, with the removal of the older one."""
    return [
        "make_folder step_00002.tmp",
        "write rank_00000.safetensors",
        "sync rank_00000.safetensors",
        "write state.json",
        "sync state.json",
        "write manifest.json",
        "sync manifest.json",
        "sync step_00002.tmp",
        "rename step_00002.tmp",
        "sync checkpoints",
        "sync run",
        "rename step_00001",
        "remove step_00001.tmp",
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's checkpoints, with that of step 1."""
    path = tmp_path / "run" / "checkpoints"
    path.parent.mkdir()
    _save(path, 1)
    return path


def _in_child(work: Callable[[], None]) -> int:
    """Do ``work`` in a fork of this process; its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except UserError:
            os._exit(2)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def _check(folder: Path, expected: tuple[int, ...]) -> int:
    """The newest checkpoint is one of the ``expected`` steps, and whole; which."""
    newest, problems = find_newest(folder)
    assert newest is not None and newest.step in expected
    assert all(p.endswith(".tmp: its writing was not finished") for p in problems)
    read = newest.shards({f"weights/{name}": 1000 for name in "abc"})
    assert newest.state() == {"step": newest.step}
    assert all(read[key].equal(tensor + newest.step) for key, tensor in SHARES.items())
    return newest.step


def test_the_changes_of_a_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests below stop it in every one of them."""
    monkeypatch.setattr(module, "disk", disk := FaultyDisk())
    _save(folder, 2)
    assert disk.seen == _changes()


@pytest.mark.parametrize("at", range(len(_changes())), ids=lambda at: _changes()[at])
def test_sigkill(at: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = FaultyDisk(at, lambda name, path: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(module, "disk", kill)
    status = _in_child(lambda: _save(folder, 2))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.setattr(module, "disk", Disk())
    renamed = at > _changes().index("rename step_00002.tmp")
    assert _check(folder, (2,) if renamed else (1,)) == (2 if renamed else 1)
    _save(folder, 3)  # in spite of what was left there
    assert _check(folder, (3,)) == 3
    assert [path.name for path in folder.iterdir()] == ["step_00003"]


@pytest.mark.parametrize("at", range(len(_changes())), ids=lambda at: _changes()[at])
def test_full_disk(at: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(module, "disk", FaultyDisk(at, full))
    with pytest.raises(UserError, match=r"checkpoint of step 2 could not be saved.*No space left"):
        _save(folder, 2)
    monkeypatch.setattr(module, "disk", Disk())
    _check(folder, (1, 2))
    _save(folder, 3)
    assert _check(folder, (3,)) == 3


@pytest.mark.parametrize("size", [100, 5_000])
def test_a_disk_that_takes_no_more_bytes(size: int, folder: Path) -> None:
    """The system's own refusal, in the middle of a file of tensors."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        _save(folder, 2)

    assert os.waitstatus_to_exitcode(_in_child(work)) == 2  # a UserError
    assert _check(folder, (1,)) == 1


def test_a_truncated_file(folder: Path) -> None:
    """The comparison with the manifest is what refuses this, not luck."""
    _save(folder, 2)
    victim = folder / "step_00002" / "rank_00000.safetensors"
    os.truncate(victim, victim.stat().st_size // 2)
    newest, problems = find_newest(folder)
    assert newest is None  # keep = 1
    assert len(problems) == 1
    assert "rank_00000.safetensors has" in problems[0] and "expected" in problems[0]
