"""What is read while there is room, and when an input that says nothing has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from test_stream_inputs import Read

from ttrl.stream.feeder import Feeder
from ttrl.stream.inbox import Inbox
from ttrl.stream.inputs import Folder, GrowingFile, Input
from ttrl.stream.lines import Line


class Taken:
    """An inbox that accepts every line."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def take(self, line: Line) -> bool:
        self.lines.append(line.text)
        return False


def fed(
    source: Input, idle_s: float, has_room: Callable[[Taken], bool] = lambda taken: True
) -> list[bytes]:
    """All that is read until the input has been idle."""
    taken, changed = Taken(), threading.Condition()
    feeder = Feeder(source, cast(Inbox, taken), lambda: has_room(taken), changed, idle_s)
    feeder.start()
    with changed:
        while not changed.wait_for(lambda: feeder.ended, 0.02):  # looks for room again
            changed.notify_all()
    feeder.stop()
    if feeder.failed is not None:
        raise feeder.failed
    return taken.lines


def test_a_full_queue_does_not_make_a_folder_idle(tmp_path: Path) -> None:
    """There is no room for longer than idle_s after each line, and more files are there."""
    for i in range(4):
        (tmp_path / f"{i}.jsonl").write_bytes(b"" if i == 2 else b"line %d\n" % i)
    since = [0.0, 0.0]

    def has_room(taken: Taken) -> bool:
        if since[0] != len(taken.lines):
            since[:] = len(taken.lines), time.monotonic()
        return time.monotonic() - since[1] > 0.3

    assert fed(Folder(tmp_path, Read()), 0.1, has_room) == [b"line 0", b"line 1", b"line 3"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_row_of_several_pieces_stays_whole(is_folder: bool, tmp_path: Path) -> None:
    """Pieces without an end of a line are something new: even if nobody waits for any idleness."""
    row = b"x" * 200 * 1024
    (tmp_path / "q.jsonl").write_bytes(row + b"\n" + row)
    source = Folder(tmp_path, Read()) if is_folder else GrowingFile(tmp_path / "q.jsonl")
    assert list(map(len, fed(source, 0.0))) == [len(row), len(row)]
