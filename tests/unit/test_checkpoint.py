"""Checkpoints of made-up tensors: what is read is what was written, by however many ranks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ttrl.run import saving as module
from ttrl.run.checkpoint import FORMAT, Checkpoint, IncompleteError, find_newest
from ttrl.run.disk import Disk
from ttrl.run.saving import Checkpoints
from ttrl.settings import CheckpointSettings
from ttrl.system.ranks import Ranks, own_shard
from ttrl.types import UserError

SIZES = {"a": 7, "b": 1, "c": 12}
KEYS = {f"weights/{name}": size for name, size in SIZES.items()}
WHOLE = {name: torch.randn(size) for name, size in SIZES.items()}


class Meeting:
    """Where threads that play ranks gather."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=20)
        self.parts: dict[int, Any] = {}

    def gather(self, rank: int, mine: Any) -> list[Any]:
        self.parts[rank] = mine
        self.barrier.wait()
        found = [self.parts[r] for r in range(self.barrier.parties)]
        self.barrier.wait()
        return found


class PlayedRank:
    """A rank that is a thread; see `ttrl.system.ranks.Ranks`."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.meeting, self.count = rank, meeting, meeting.barrier.parties
        self.is_main = rank == 0

    def gather(self, mine: Any) -> list[Any]:
        return self.meeting.gather(self.rank, mine)

    def own_group(self) -> PlayedRank:
        return self


def on_ranks(count: int, work: Callable[[Any], None]) -> list[Exception | None]:
    """Do ``work`` on so many ranks; what each of them raised."""
    meeting = Meeting(count)
    errors: list[Exception | None] = [None] * count

    def play(rank: int) -> None:
        try:
            work(PlayedRank(rank, meeting))
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def saver(folder: Path, ranks: Any = None, **settings: Any) -> Checkpoints:
    options = CheckpointSettings(**{"asynchronous": False, **settings})
    return Checkpoints(folder, options, ranks or Ranks())


def shares_of(ranks: Any) -> dict[str, torch.Tensor]:
    return {f"weights/{name}": own_shard(tensor, ranks) for name, tensor in WHOLE.items()}


def save(folder: Path, *steps: int, scores: tuple[float, ...] = (), **settings: Any) -> None:
    saving = saver(folder, **settings)
    for i, step in enumerate(steps):
        score = scores[i] if scores else None
        saving.save(step, {"step": step}, shares_of(Ranks()), score)
    saving.finish()


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_any_number_of_ranks_reads_what_any_number_wrote(
    writers: int, readers: int, tmp_path: Path
) -> None:
    def write(ranks: Any) -> None:
        saver(tmp_path, ranks).save(10, {"main": ranks.is_main}, shares_of(ranks), None)

    assert on_ranks(writers, write) == [None] * writers
    newest, problems = find_newest(tmp_path)
    assert newest is not None and problems == []
    assert (newest.step, newest.ranks, newest.state()) == (10, writers, {"main": True})
    parts = [newest.shards(KEYS, rank, readers) for rank in range(readers)]
    for name, size in SIZES.items():
        whole = torch.cat([part[f"weights/{name}"] for part in parts])
        assert len(whole) == -(-size // readers) * readers
        assert whole[:size].equal(WHOLE[name])
        assert not whole[size:].any()


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, scores=(0.1, 0.5, 0.2, 0.5, 0.3))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00002", "step_00004", "step_00005"]
    best = module.best_of(tmp_path)
    assert best is not None and best.name == "step_00002"
    assert Checkpoint.open(best).score == 0.5


def test_steps_that_are_saved(tmp_path: Path) -> None:
    saving = saver(tmp_path, every=3)
    assert [step for step in range(1, 8) if saving.due(step, 7)] == [3, 6, 7]
    assert not any(saver(tmp_path, every=0).due(step, 7) for step in range(1, 8))


@pytest.mark.parametrize("victim", ["rank_00000.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["shorter", "flipped", "gone"])
def test_a_damaged_file_is_found(victim: str, damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step_00002" / victim
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "shorter":
            path.write_bytes(path.read_bytes()[:-5])
        case "flipped":
            path.write_bytes(content)
        case "gone":
            path.unlink()
    newest, problems = find_newest(tmp_path)
    assert newest is not None and newest.step == 1
    (problem,) = problems
    assert problem.startswith("step_00002: ")
    assert damage == "flipped" or victim in problem


def manifest_of(step: int, ranks: int) -> dict[str, Any]:
    """A manifest as it should be."""
    names = ["state.json", *(f"rank_{i:05d}.safetensors" for i in range(ranks))]
    files = {name: {"bytes": 1, "sha256": "0"} for name in names}
    return {"format": FORMAT, "step": step, "ranks": ranks, "score": None, "files": files}


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../secret": {}}},
        {"files": {"state.json": 1, "rank_00000.safetensors": 1}},
        {"files": {"state.json": {}, "rank_00000.safetensors": {}}},
        {"ranks": "1"},
        {"ranks": True},
        {"ranks": 0, "files": {"state.json": {"bytes": 1, "sha256": "0"}}},
        {"ranks": 1e10},
        {"ranks": 10**10},
        {"score": "high"},
        {"score": float("nan")},
        {"step": 2},
        {"step": 1.0},
    ],
    ids=str,
)
def test_a_manifest_that_was_changed(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "step_00001"
    path.mkdir()
    for name in manifest_of(1, 1)["files"]:
        (path / name).write_text("x")
    for changes, problem in (({}, "differs from its SHA-256"), (change, r"manifest\.json")):
        (path / "manifest.json").write_text(json.dumps(manifest_of(1, 1) | changes))
        with pytest.raises(IncompleteError, match=problem):
            Checkpoint.open(path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{", '"\xff"'], ids=lambda t: t[:5])
def test_a_manifest_that_is_none(text: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = tmp_path / "step_00001" / "manifest.json"
    manifest.write_bytes(text.encode("latin-1"))
    with pytest.raises(IncompleteError, match=r"manifest\.json"):
        Checkpoint.open(manifest.parent)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    """And not passed over: what is newer than the one that is used gets removed."""
    save(tmp_path, 1, 2)
    manifest = tmp_path / "step_00002" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(f'"format": {FORMAT}', f'"format": {FORMAT - 1}'))
    with pytest.raises(UserError, match=r"step_00002 .* another version .* format 1, expected 2"):
        find_newest(tmp_path)


def unreadable(monkeypatch: pytest.MonkeyPatch, method: str, name: str, number: int) -> None:
    """As if the system refused this file or folder, also to the superuser."""
    plain = getattr(Path, method)

    def refuse(path: Path, *more: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(number, os.strerror(number))
        return plain(path, *more, **options)

    monkeypatch.setattr(Path, method, refuse)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("victim", ["rank_00000.safetensors", "state.json", "manifest.json"])
def test_a_file_that_cannot_be_read_is_not_taken_for_lost(
    victim: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    unreadable(monkeypatch, "read_text" if victim == "manifest.json" else "open", victim, number)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: '.*step_00001/{victim}'"):
        find_newest(tmp_path)


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_newest(tmp_path / "none") == (None, [])
    save(tmp_path, 1)

    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)  # what glob looks with, and says nothing
    with pytest.raises(PermissionError, match=str(tmp_path)):
        find_newest(tmp_path)


@pytest.mark.parametrize(
    "shares",
    [
        {"a": torch.zeros(7), "b": torch.zeros(1)},
        {"a": torch.zeros(7), "b": torch.zeros(1), "c": torch.zeros(11)},
        {"a": torch.zeros(7), "b": torch.zeros(1), "c": torch.zeros(4, 3)},
        {"a": torch.zeros(7), "b": torch.zeros(1), "c": torch.zeros(12).double()},
    ],
    ids=["missing", "too short", "not flat", "float64"],
)
def test_tensors_that_are_not_what_was_saved(
    shares: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Saved so by somebody else: their digests are right."""
    named = {f"weights/{name}": tensor for name, tensor in shares.items()}
    saver(tmp_path).save(1, {}, named, None)
    newest, _ = find_newest(tmp_path)
    assert newest is not None
    with pytest.raises(UserError, match=r"step_00001 holds something else .*weights/c"):
        newest.shards(KEYS)


class SlowDisk(Disk):
    """Writes only when it may, and then fails if it should."""

    def __init__(self, error: str = "") -> None:
        self.may, self.error = threading.Event(), error

    def write(self, path: Path, content: Any) -> None:
        assert self.may.wait(20)
        if self.error and path.name == self.error:
            raise OSError(28, "No space left on device")
        super().write(path, content)


def test_the_run_goes_on_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "disk", disk := SlowDisk())
    with saver(tmp_path, asynchronous=True) as saving:
        saving.save(1, {}, shares_of(Ranks()), None)
        saving.check()
        assert find_newest(tmp_path)[0] is None
        disk.may.set()
    newest, _ = find_newest(tmp_path)
    assert newest is not None and newest.step == 1


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("noticed", ["check", "save", "finish"])
def test_an_error_is_never_lost(
    noticed: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = saver(tmp_path, asynchronous=asynchronous)
    saving.save(1, {}, shares_of(Ranks()), None)
    saving.finish()
    monkeypatch.setattr(module, "disk", disk := SlowDisk("state.json"))
    disk.may.set()
    with pytest.raises(
        UserError, match=r"checkpoint of step 2 .* No space left on device.*is whole"
    ):
        saving.save(2, {}, shares_of(Ranks()), None)
        match noticed:
            case "check":
                while saving._thread is not None:
                    saving.check()
            case "save":
                saving.save(3, {}, shares_of(Ranks()), None)
            case "finish":
                saving.finish()
    newest, problems = find_newest(tmp_path)
    assert newest is not None and newest.step == 1
    assert problems == ["step_00002.tmp: its writing was not finished"]


def test_an_error_on_one_rank_is_an_error_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "disk", disk := SlowDisk("rank_00001.safetensors"))
    disk.may.set()
    errors = on_ranks(3, lambda ranks: saver(tmp_path, ranks).save(1, {}, shares_of(ranks), None))
    assert all(isinstance(error, UserError) for error in errors)
    assert all("rank 1: [Errno 28] No space left on device" in str(error) for error in errors)
    assert find_newest(tmp_path)[0] is None


def test_what_comes_after_a_step_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep=9)
    (tmp_path / "step_00003").rename(tmp_path / "step_00003.tmp")
    module.remove_after(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00001"]


def test_what_a_user_has_named_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    names = ["step_00002_keep", "step_00009 (old)", "step_00009.tmp.tar", "step_000010", "step_9"]
    for name in names:
        shutil.copytree(folder / "step_00001", folder / name)
    newest, problems = find_newest(folder)
    assert newest is not None and (newest.step, problems) == (1, [])
    save(folder, 2, 3, keep=1)
    module.remove_after(folder, 0)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_links_and_files_with_our_names_are_no_reason_to_fail(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    save(elsewhere, 2)
    save(folder, 1)
    (folder / "step_00002").symlink_to(elsewhere / "step_00002")
    (folder / "step_00004.tmp").symlink_to(elsewhere)
    (folder / "step_00005.tmp").write_text("text")
    (folder / "step_00006").write_text("text")
    newest, problems = find_newest(folder)
    assert newest is not None and newest.step == 2
    assert problems[0] == "step_00006: it has no manifest.json"
    save(folder, 3, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00003", "step_00006"]
    (folder / "step_00005").symlink_to(tmp_path / "nothing")
    module.remove_after(folder, 3)
    assert [path.name for path in folder.iterdir()] == ["step_00003"]
    assert Checkpoint.open(elsewhere / "step_00002").step == 2


def test_ranks_without_a_common_folder_are_refused_at_once(tmp_path: Path) -> None:
    """As on two machines, each with a disk of its own."""
    (tmp_path / "machine_0").mkdir()

    def begin(ranks: Any, **settings: Any) -> None:
        saver(tmp_path / f"machine_{ranks.rank}" / "checkpoints", ranks, **settings)

    for error in on_ranks(2, begin):
        assert isinstance(error, UserError)
        assert "ranks [1] do not see" in str(error) and "--run-dir" in str(error)
    assert on_ranks(2, lambda ranks: begin(ranks, every=0)) == [None, None]  # nothing is saved
