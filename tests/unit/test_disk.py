"""What is added to a file is there whole, or not at all."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from ttrl.run.disk import disk


class Filling(io.FileIO):
    """A file on a disk that takes three bytes, is full once, and then has room again."""

    writes = 0

    def write(self, content: Any) -> int:
        self.writes += 1
        if self.writes == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(bytes(content)[:3] if self.writes == 1 else content)


def test_after_an_error_nothing_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    disk.append(path, b"one\n")
    opened: list[Filling] = []

    def open_(path: Path, mode: str, buffering: int = -1) -> Any:
        opened.append(Filling(str(path), mode.replace("b", "")))
        return io.BufferedWriter(opened[-1]) if buffering else opened[-1]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_)
        with pytest.raises(OSError, match=r"No space left on device: '.*/lines'"):
            disk.append(path, b"a line that is too long\n")
    assert opened[0].writes >= 2 and opened[0].closed
    assert path.read_bytes() == b"one\n"
    disk.append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_write_that_takes_a_part_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(bytes(content)[:2])

    path = tmp_path / "lines"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, mode, buffering: Slow(str(path), "a"))
        disk.append(path, b"a line\n")
    assert path.read_bytes() == b"a line\n"
