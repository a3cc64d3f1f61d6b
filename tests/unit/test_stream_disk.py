"""What a stream's run finds on disk when it goes on: all of it, or an error."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_stream_windows import QUIET, add, answer, kept, rows, settings, source

from ttrl.report.display import Display
from ttrl.run import run_folder
from ttrl.run.disk import Disk
from ttrl.run.resume import find_start
from ttrl.run.run_folder import RunFolder
from ttrl.stream import appended, stream
from ttrl.stream.answers import Answers
from ttrl.stream.appended import AppendedFile, json_line
from ttrl.stream.inbox import Inbox
from ttrl.stream.windows import Windows
from ttrl.types import UserError

SCREEN = Display(Console(file=io.StringIO()))


# ---------------------------------------------------------------------------------------------
# Files that are not what they were


def of_two_steps(folder: Path, growing: Path) -> Path:
    """Asked and answered; five more questions have come. Returns the answers' file."""
    add(growing, rows(1, 11))
    made = source(settings(growing))
    with made.running(folder):
        for step in (1, 2):
            assert made.wait_for(step, QUIET)
            answer(made, step)
    return folder / "stream" / "answers.jsonl"


@pytest.mark.parametrize("left", [None, 0, 1, 5])
def test_missing_answers_are_no_reason_to_wait(left: int | None, tmp_path: Path) -> None:
    """With room for so few questions that nothing would ever move."""
    growing = tmp_path / "q.jsonl"
    path = of_two_steps(tmp_path, growing)
    whole = path.read_bytes().splitlines(keepends=True)
    if left is None:
        path.unlink()
    else:
        path.write_bytes(b"".join(whole[:left]))
    before = kept(tmp_path, "windows")
    again = source(settings(growing, "stream.queue=6"))
    words = f"has answers to {left or 0} questions, expected those to all before question 7: put ba"
    with again.running(tmp_path), pytest.raises(UserError, match=words):
        again.wait_for(3, QUIET)
    assert kept(tmp_path, "windows") == before  # none was closed
    path.write_bytes(b"".join(whole))
    again = source(settings(growing, "stream.queue=6"))
    with again.running(tmp_path):
        assert again.wait_for(3, QUIET)


def test_a_window_that_was_closed_is_not_asked_before_those_before_it(tmp_path: Path) -> None:
    growing = tmp_path / "q.jsonl"
    path = of_two_steps(tmp_path, growing)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    again = source(settings(growing))
    with (
        again.running(tmp_path),
        pytest.raises(UserError, match=r"has answers to 2 questions, .* all before question 4"),
    ):
        again.wait_for(2, QUIET)


def test_a_line_is_found_by_a_number_that_grows(tmp_path: Path) -> None:
    """As a walk over all lines finds it, whatever their lengths are."""
    draw = random.Random("lines")
    for size in (0, 1, 2, 3, 50):
        kept = AppendedFile(tmp_path / f"{size}.jsonl", {"n": int})
        assert list(kept.open()) == []
        numbers = sorted(draw.sample(range(200), size))
        lines = [{"n": n, "x": "y" * draw.choice((0, 3, 2000))} for n in numbers]
        for line in lines:
            kept.append(json_line(line))
        for least in range(-1, 202):
            walked = next((line for line in lines if line["n"] >= least), None)
            assert kept.first("n", least) == walked


def test_half_a_line_that_another_thread_writes_is_not_there(tmp_path: Path) -> None:
    kept = AppendedFile(tmp_path / "a.jsonl", {"n": int})
    list(kept.open())
    kept.append(json_line({"n": 1}))
    with kept.path.open("ab") as file:
        file.write(b'{"n": ')
    assert [kept.first("n", n) for n in (0, 1, 2)] == [{"n": 1}, {"n": 1}, None]


def test_windows_that_do_not_follow_each_other_are_not_ours(tmp_path: Path) -> None:
    windows = Windows(tmp_path)
    windows.open()
    for count in (2, 1, 3):
        windows.close(count, "full")
    assert [windows.of(number) for number in range(1, 8)] == [1, 1, 2, 3, 3, 3, 4]
    path = tmp_path / "windows.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for left in (first + third, second + third, first + first):
        path.write_bytes(left)
        with pytest.raises(UserError, match=r"a line is not one of ours \(window \d behind window"):
            Windows(tmp_path).open()


def test_answers_have_no_gaps(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers = Answers(path)
    answers.open()
    answers.add([{"number": 1}, {"number": 2}])
    with pytest.raises(UserError, match=r"has answers to 2 questions, .* all before question 4"):
        answers.add([{"number": 2}, {"number": 4}])
    assert path.read_text().count("\n") == 2
    path.write_text('{"number": 1}\n{"number": 1}\n')
    with pytest.raises(UserError, match=r"not one of ours \(number 1 is there twice\)"):
        Answers(path).open()
    path.write_text('{"number": 1}\n{"number": 3}\n')
    with pytest.raises(UserError, match=r"has answers to 1 questions, .* all before question 3"):
        Answers(path).open()


@pytest.mark.parametrize("name", ["questions", "refused", "windows", "answers"])
def test_a_record_without_what_it_must_have_is_refused(name: str, tmp_path: Path) -> None:
    for line in ("{}", '{"last": "x", "number": null, "read": 1, "file": "f", "line": 1}'):
        (tmp_path / f"{name}.jsonl").write_text(line + "\n")
        opened: dict[str, Any] = {
            "questions": Inbox(tmp_path, lambda row: pytest.fail("it is not read")),
            "refused": Inbox(tmp_path, lambda row: pytest.fail("it is not read")),
            "windows": Windows(tmp_path),
            "answers": Answers(tmp_path / "answers.jsonl"),
        }[name]
        with pytest.raises(UserError, match=rf"{name}.jsonl: a line is not one of ours \(expected"):
            opened.open()


# ---------------------------------------------------------------------------------------------
# A run that begins again


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """A run that has made no step, with a checkpoint due after every ten."""
    made = RunFolder(tmp_path / "run")
    made.create(settings(tmp_path / "q.jsonl", "checkpoint.every=10"))
    (made.path / "stream").mkdir()
    return made


def start(begun: RunFolder, *more: str) -> object:
    of = settings(begun.path.parent / "q.jsonl", "checkpoint.every=10", *more)
    with RunFolder(begun.path) as again:
        begun.__exit__()
        return find_start(of, again, SCREEN)


def made(begun: RunFolder, steps: int) -> None:
    lines = [json.dumps({"step": step}) + "\n" for step in range(steps + 1)]
    (begun.path / "metrics.jsonl").write_text("".join(lines))


def test_a_run_begins_again_only_where_nothing_can_have_been_saved(begun: RunFolder) -> None:
    (begun.checkpoints / "step_00010.tmp").mkdir(parents=True)  # a save that was killed
    for steps in (0, 9, 20):  # the save of step 10 may go on until that of step 20 begins
        made(begun, steps)
        assert start(begun) is None
    made(begun, 21)
    words = "holds no complete checkpoint .*21 steps were made, with checkpoint.every = 10"
    with pytest.raises(UserError, match=words):
        start(begun)
    assert start(begun, "checkpoint.every=0") is None
    made(begun, 0)
    assert start(begun) is None
    (begun.checkpoints / "step_00010").mkdir()
    with pytest.raises(UserError, match=r"holds no complete checkpoint .*step_00010 was complete"):
        start(begun)


# ---------------------------------------------------------------------------------------------
# A power cut


class Synced(Disk):
    """Notes what was made to survive one, and how large it was."""

    def __init__(self) -> None:
        self.of: list[tuple[str, int]] = []

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.of.append((path.name, path.stat().st_size if path.is_file() else -1))


def test_what_a_killed_process_has_left_is_on_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = Synced()
    monkeypatch.setattr(appended, "disk", synced)
    (tmp_path / "a.jsonl").write_text('{"number": 1}\n{"numb')
    assert list(AppendedFile(tmp_path / "a.jsonl", {}).open()) == [{"number": 1}]
    assert synced.of == [("a.jsonl", 14)]


def test_names_of_a_run_that_was_begun_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = Synced()
    monkeypatch.setattr(run_folder, "disk", synced)
    monkeypatch.setattr(stream, "disk", synced)
    growing = tmp_path / "q.jsonl"
    growing.touch()
    begun = RunFolder(tmp_path / "run")
    begun.create(settings(growing))
    size = (begun.path / "config.toml").stat().st_size
    assert synced.of == [("config.toml.tmp", size), ("run", -1), (tmp_path.name, -1)]
    with source(settings(growing)).running(begun.path):
        assert synced.of[3:] == [("run", -1)]
    begun.__exit__()
