"""A stream goes on for ever: what a run holds in memory does not grow with it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, cast

import pytest
from groups import group, voted
from test_stream_windows import END, QUIET, add, rows, settings, source

from ttrl.answers import Grader
from ttrl.rewards.scorer import GroupScorer
from ttrl.run.disk import Disk
from ttrl.stream import appended
from ttrl.stream.inbox import Inbox, Sent
from ttrl.stream.phase import StreamPhase
from ttrl.stream.source import StreamSource
from ttrl.stream.stream import Stopped, Stream
from ttrl.types import Estimate, StepResult

TIMES = {"rollout/tokens": 5.0, "time/rollout_s": 1.0, "time/update_s": 2.0}
FEW, SMALL = 300, 30_000
"""Objects and bytes that come and go: SQLite's module notes up to 200 cursors that it has had."""
SHARED = (ModuleType, type, FunctionType, BuiltinFunctionType)
"""What leads to the whole program."""


def held(*roots: object) -> tuple[int, int]:
    """The number of objects that can be reached, and their bytes."""
    gc.collect()
    seen: dict[int, object] = {}
    waiting: list[object] = list(roots)
    while waiting:
        found = waiting.pop()
        if id(found) not in seen and not isinstance(found, SHARED):
            seen[id(found)] = found
            waiting += gc.get_referents(found)
    return len(seen), sum(map(sys.getsizeof, seen.values()))


class Fast(Disk):
    """Does not wait for the disk: there are many lines."""

    def append(self, path: Path, content: bytes) -> None:
        with path.open("ab") as file:
            file.write(content)


class Pool:
    def forget(self, questions: object) -> None:
        pass


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appended, "disk", Fast())


def phase_of(asked: StreamSource, grader: Grader) -> StreamPhase:
    scorer = GroupScorer(asked.settings, grader)
    none = cast(Any, None)
    return StreamPhase(asked, none, cast(Any, Pool()), scorer, QUIET, None)


def steps(phase: StreamPhase, visits: int) -> Iterator[int]:
    """The questions that were answered, after each step that was learned from."""
    step = 0
    while phase.goes_on(step := step + 1):
        groups = [group("7", "8", "7", id=q.id) for q in phase.source.questions(step)]
        votes = [voted(of).vote for of in groups]
        estimates = [Estimate(vote=v, rewards_G=(1.0, 0.0, 1.0), label="7") for v in votes]
        phase.answer(step, groups, estimates, updates=step)
        phase.scorer.remember(step, groups, estimates)
        phase.after_push(StepResult(step, groups, estimates, dict(TIMES)), is_end=False)
        if step % visits == 0:
            yield phase.source.stream.answers.last


@pytest.mark.parametrize("visits", [1, 2])
def test_a_run_holds_no_more_after_many_questions(visits: int, tmp_path: Path) -> None:
    growing = tmp_path / "q.jsonl"
    add(growing, rows(1, 600) + END)
    asked = source(settings(growing, "stream.queue=8", f"stream.visits={visits}"))
    with Grader() as grader, asked.running(tmp_path):
        phase, found = phase_of(asked, grader), {}
        for answered in steps(phase, visits):
            if answered in (120, 600):
                found[answered] = held(phase)
    objects, size = (found[600][i] - found[120][i] for i in (0, 1))
    assert abs(objects) < FEW
    assert size < 2 * 480 + SMALL  # two digits a question, for the last third
    assert asked.key.answers == {} and asked.key.levels == {}


def test_a_run_that_goes_on_holds_no_more(tmp_path: Path) -> None:
    """What an earlier process has left is looked up, and not kept."""
    growing, found = tmp_path / "q.jsonl", {}
    for last in (60, 600):
        growing.unlink(missing_ok=True)
        add(growing, rows(1, last) + END)
        folder = tmp_path / str(last)
        folder.mkdir()
        asked = source(settings(growing, "stream.queue=8"))
        with Grader() as grader, asked.running(folder):
            assert list(steps(phase_of(asked, grader), 1))[-1] == last
        again = source(settings(growing, "stream.queue=8"))
        with again.running(folder):
            found[last] = held(again)
            assert again.stream.accepted == last
    assert abs(found[600][0] - found[60][0]) < FEW
    assert abs(found[600][1] - found[60][1]) < SMALL


def test_a_server_holds_no_more_and_finds_all(tmp_path: Path) -> None:
    """Each answer, and each row that is sent again."""
    of = settings("http", "data.held_out=none", "stream.patience_s=0", "stream.queue=8")
    asked = source(of)
    found = {}
    with asked.running(tmp_path):
        stream: Stream = asked.stream
        for number in range(1, 801):
            row = f'{{"id": "q{number}", "prompt": "What is {number} + 1?"}}'.encode()
            assert stream.accept(row, lambda number: None) == (number, True)
            assert stream.take(number, lambda: None)
            stream.answer([{"number": number, "answer": str(number + 1)}], adapted=False)
            if number in (200, 800):
                found[number] = held(stream)
        for number in (1, 2, 377, 799, 800):
            row = f'{{"id": "q{number}", "prompt": "What is {number} + 1?"}}'.encode()
            assert stream.accept(row, lambda number: None) == (number, False)
            answer = stream.answers.find(number)
            assert answer is not None and answer["answer"] == str(number + 1)
        assert stream.answers.find(0) is stream.answers.find(801) is None
    assert abs(found[800][0] - found[200][0]) < FEW
    assert abs(found[800][1] - found[200][1]) < SMALL


def test_a_row_that_comes_as_the_server_stops_is_kept_or_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been checked before the end; a disk that is closed is no full one."""
    asked = source(settings("http", "data.held_out=none", "stream.patience_s=0", "stream.queue=8"))
    checked, row = Inbox.checked, b'{"id": "q", "prompt": "What is 1 + 1?"}'
    ends: list[Thread] = []

    def ended_meanwhile(self: Inbox, row: bytes) -> Sent:
        found = checked(self, row)
        ends.append(Thread(target=asked.stream.close))
        ends[0].start()
        ends[0].join(0.2)  # as long as it waits for this
        return found

    with asked.running(tmp_path):
        monkeypatch.setattr(Inbox, "checked", ended_meanwhile)
        assert asked.stream.accept(row, lambda number: None) == (1, True)
        ends[0].join()
        with pytest.raises(Stopped):
            asked.stream.accept(row, lambda number: None)
    assert (tmp_path / "stream" / "questions.jsonl").read_text().count("\n") == 1


def test_a_folder_of_many_files_is_read_once_each(tmp_path: Path) -> None:
    folder = tmp_path / "arriving"
    folder.mkdir()
    for i in range(1, 601):
        (folder / f"{i:04}.jsonl").write_text(rows(i, i))
    asked, found = source(settings(folder, "stream.queue=8", "stream.idle_s=0.3")), {}
    with Grader() as grader, asked.running(tmp_path):
        for answered in steps(phase_of(asked, grader), 1):
            if answered in (120, 600):
                found[answered] = held(asked)
    assert abs(found[600][0] - found[120][0]) < FEW
    kept = (tmp_path / "stream" / "questions.jsonl").read_text().splitlines()
    assert len(kept) == 600
