"""Which questions of a stream a step asks, when it begins, and that each is answered once."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from groups import group, voted
from rich.console import Console
from tiny_tokenizer import tiny_tokenizer

from ttrl.report.display import Display
from ttrl.run.disk import Disk
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.stream import appended
from ttrl.stream.source import StreamSource
from ttrl.stream.windows import Windows
from ttrl.system.ranks import Ranks
from ttrl.types import Question, UserError

QUIET = Display(Console(quiet=True))
END = '{"end_of_stream": true}\n'


def rows(first: int, last: int) -> str:
    return "".join(
        json.dumps({"id": f"q{i}", "prompt": f"What is {i} + 1?", "answer": i + 1}) + "\n"
        for i in range(first, last + 1)
    )


def settings(train: object, *more: str) -> Settings:
    return load_settings(
        "tiny-stream",
        overrides=[
            f"data.train={train}",
            "policy.sequences_per_update=32",
            "rollout.questions_per_step=3",
            "stream.patience_s=600",
            *more,
        ],
    )


def source(of: Settings) -> StreamSource:
    return StreamSource(of, tiny_tokenizer(), Ranks())


def ids(of: StreamSource, step: int) -> list[str]:
    return [q.id for q in of.questions(step)]


def answer(of: StreamSource, step: int, *, adapted: bool = False) -> None:
    """The step's questions, answered 7, 7 and 8."""
    groups = [group("7", "8", "7", None, id=q.id) for q in of.questions(step)]
    votes = [voted(of_question).vote for of_question in groups]
    of.answer(step, 10 * step, groups, votes, adapted=adapted)


def kept(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "stream" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.touch()
    return path


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_before_any_question_has_come_there_are_others_to_try(growing: Path) -> None:
    found = source(settings(growing)).examples(2)
    assert [q.text for q in found] == ["What is 12 + 34?", "What is 13 + 34?"]
    assert all((q.text or "") in q.prompt and q.prompt_ids for q in found)


def test_windows_are_full_but_for_the_last(growing: Path, tmp_path: Path) -> None:
    add(growing, rows(1, 7) + END + rows(8, 9))
    stream = source(settings(growing))
    with stream.running(tmp_path):
        asked = {}
        for step in (1, 2, 3):
            assert stream.wait_for(step, QUIET)
            asked[step] = ids(stream, step)
            answer(stream, step)
        assert not stream.wait_for(4, QUIET)
    assert asked == {1: ["q1", "q2", "q3"], 2: ["q4", "q5", "q6"], 3: ["q7"]}
    assert kept(tmp_path, "windows") == [
        {"window": 1, "first": 1, "last": 3, "closed": "full"},
        {"window": 2, "first": 4, "last": 6, "closed": "full"},
        {"window": 3, "first": 7, "last": 7, "closed": "end"},
    ]
    assert stream.has_ended
    assert stream.key.answers == {f"q{i}": str(i + 1) for i in range(1, 8)}


def test_a_window_that_was_closed_stays_what_it_is(growing: Path, tmp_path: Path) -> None:
    """Also if the process ends before it is asked, and more have come when it begins again."""
    add(growing, rows(1, 2))
    stream = source(settings(growing, "stream.patience_s=0"))
    with stream.running(tmp_path):
        assert stream.wait_for(1, QUIET)
    add(growing, rows(3, 9))
    again = source(settings(growing))
    with again.running(tmp_path):
        assert again.wait_for(1, QUIET) and ids(again, 1) == ids(stream, 1)
        answer(again, 1)
        assert again.wait_for(2, QUIET)
        assert ids(again, 2)[0] == f"q{len(ids(stream, 1)) + 1}"
    assert [x["closed"] for x in kept(tmp_path, "windows")] == ["patience", "full"]


def test_with_visits_a_window_spans_steps(growing: Path, tmp_path: Path) -> None:
    add(growing, rows(1, 4) + END)
    stream = source(settings(growing, "stream.visits=2"))
    with stream.running(tmp_path):
        asked = []
        for step in (1, 2, 3, 4):
            assert stream.wait_for(step, QUIET)
            asked.append(ids(stream, step))
            if stream.is_first_visit(step):
                answer(stream, step)
        assert not stream.wait_for(5, QUIET)
    assert asked == [["q1", "q2", "q3"]] * 2 + [["q4"]] * 2
    assert [stream.is_first_visit(s) for s in (1, 2, 3, 4)] == [True, False, True, False]
    assert [stream.is_last_visit(s) for s in (1, 2, 3, 4)] == [False, True, False, True]


def test_half_a_line_waits_for_its_end_and_idleness_is_one(growing: Path, tmp_path: Path) -> None:
    whole = rows(1, 2)
    add(growing, whole[:-20])
    stream = source(settings(growing, "stream.idle_s=0.5", "rollout.questions_per_step=1"))
    with stream.running(tmp_path):
        assert stream.wait_for(1, QUIET)
        answer(stream, 1)
        add(growing, whole[-20:].removesuffix("\n"))
        assert stream.wait_for(2, QUIET)  # its line has no end
        assert (ids(stream, 2), stream.waited_s >= 0.3) == (["q2"], True)
        answer(stream, 2)
        assert not stream.wait_for(3, QUIET)
    assert kept(tmp_path, "refused") == []


# ---------------------------------------------------------------------------------------------
# Back-pressure


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Callable[[], None]]]:
    """The writing end of a pipe that is standard input, and what closes it."""
    ours, theirs = os.pipe()
    monkeypatch.setattr("ttrl.stream.stream.STDIN_DESCRIPTOR", ours)
    is_open = True

    def close() -> None:
        nonlocal is_open
        if is_open:
            os.close(theirs)
        is_open = False

    yield theirs, close
    close()
    os.close(ours)


def test_a_writer_waits_while_answers_are_due(
    pipe: tuple[int, Callable[[], None]], tmp_path: Path
) -> None:
    """Much more than the pipe holds: it is all written only when questions are answered."""
    descriptor, close = pipe
    filler = " " * 3000
    text = "".join(
        json.dumps({"id": f"q{i}", "prompt": f"What is {i} + 1?", "more": filler}) + "\n"
        for i in range(100)
    ).encode()
    written = 0

    def write() -> None:
        nonlocal written
        while written < len(text):
            written += os.write(descriptor, text[written : written + 4096])
        close()

    stream = source(settings("-", "stream.queue=4"))
    with stream.running(tmp_path):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        step, most = 0, 0
        while stream.wait_for(step + 1, QUIET):
            step += 1
            time.sleep(0.01)
            unanswered = len(kept(tmp_path, "questions")) - 3 * (step - 1)
            most = max(most, unanswered)
            if step == 3:  # nothing moves without an answer
                wait_until(lambda: len(kept(tmp_path, "questions")) == 10)
                time.sleep(0.3)
                assert len(kept(tmp_path, "questions")) == 10
                # A pipe, the piece that is being looked at, and four questions.
                assert written <= 10 * 3100 + 2 * 2**16
            answer(stream, step)
        writer.join(10)
    assert (step, most) == (34, 4)
    assert [x["id"] for x in kept(tmp_path, "answers")] == [f"q{i}" for i in range(100)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------
# Answers


def test_each_question_is_answered_once_whatever_is_made_again(
    growing: Path, tmp_path: Path
) -> None:
    add(growing, rows(1, 6) + END)
    for last in (1, 2, 2):  # as often as a run goes on from its beginning
        stream = source(settings(growing))
        with stream.running(tmp_path):
            for step in range(1, last + 1):
                assert stream.wait_for(step, QUIET)
                answer(stream, step)
    found = kept(tmp_path, "answers")
    assert [x["number"] for x in found] == [1, 2, 3, 4, 5, 6]
    assert found[3] == {
        "number": 4,
        "id": "q4",
        "step": 2,
        "updates": 20,
        "answer": "7",
        "share": 0.5,
        "votes": 4,
        "first": "7",
        "response": r"So it is $\boxed{7}$.",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "response_tokens": 1,
        "tokens": sum(len(c.token_ids) for c in group("7", "8", "7", None).completions),
    }
    assert kept(tmp_path, "adapted") == []


def test_half_of_a_step_s_answers_are_made_whole(growing: Path, tmp_path: Path) -> None:
    add(growing, rows(1, 3) + END)
    for size in (0, 1, 2, 3):
        with source(settings(growing)).running(tmp_path):
            pass
        path = tmp_path / "stream" / "answers.jsonl"
        whole = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(whole[:size]) + (b'{"num' if size < 3 else b""))
        stream = source(settings(growing))
        with stream.running(tmp_path):
            assert stream.wait_for(1, QUIET)
            answer(stream, 1)
            answer(stream, 1, adapted=True)
        assert [x["number"] for x in kept(tmp_path, "answers")] == [1, 2, 3]
    assert [x["number"] for x in kept(tmp_path, "adapted")] == [1, 2, 3]


def test_nothing_is_lost_or_taken_twice_whenever_the_writing_ends(
    growing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process ends in each of its writings in turn, with half of it on disk."""
    add(growing, rows(1, 2) + "{\n\n" + rows(3, 3) + "7\n" + rows(4, 5) + END)

    class Dying(Disk):
        left = 0

        def append(self, path: Path, content: bytes) -> None:
            if self.left == 0:
                with path.open("ab") as file:
                    file.write(content[: len(content) // 2])
                raise SystemExit
            self.left -= 1
            super().append(path, content)

    for writings in count():
        folder = tmp_path / str(writings)
        folder.mkdir()
        dying = Dying()
        dying.left, died = writings, False
        with monkeypatch.context() as patched:
            patched.setattr(appended, "disk", dying)
            try:
                through(growing, folder)
            except SystemExit:
                died = True
        through(growing, folder)
        assert [x["id"] for x in kept(folder, "questions")] == [f"q{i}" for i in range(1, 6)]
        assert [x["read"] for x in kept(folder, "refused")] == [3, 5]
        assert [x["id"] for x in kept(folder, "answers")] == [f"q{i}" for i in range(1, 6)]
        windows = kept(folder, "windows")
        assert [(x["first"], x["last"]) for x in windows] == [(1, 3), (4, 5)]
        if not died:
            break
    # Five files are made; five questions, two refused lines, two windows, two steps of answers.
    assert writings == 5 + 5 + 2 + 2 + 2


def through(growing: Path, folder: Path) -> None:
    stream, step = source(settings(growing)), 1
    with stream.running(folder):
        while stream.wait_for(step, QUIET):
            answer(stream, step)
            step += 1


# ---------------------------------------------------------------------------------------------
# What goes wrong


def test_a_truncated_file_ends_the_run(growing: Path, tmp_path: Path) -> None:
    add(growing, rows(1, 3))
    stream = source(settings(growing))
    with stream.running(tmp_path):
        assert stream.wait_for(1, QUIET)
        answer(stream, 1)
        growing.write_text("")
        with pytest.raises(UserError, match=r"has failed: data.train: .* has 0 bytes, of which"):
            stream.wait_for(2, QUIET)


def test_checks_of_the_run_are_made_of_every_row(growing: Path, tmp_path: Path) -> None:
    def no_threes(question: Question) -> None:
        if "3" in question.prompt:
            raise UserError("it has a three")

    add(growing, rows(1, 4) + END)
    stream = source(settings(growing))
    stream.checks.append(no_threes)
    with stream.running(tmp_path):
        assert stream.wait_for(1, QUIET)
    assert ids(stream, 1) == ["q1", "q2", "q4"]
    assert [x["reason"] for x in kept(tmp_path, "refused")] == ["it has a three"]


def test_a_label_that_cannot_be_read_is_said_and_left_out(growing: Path, tmp_path: Path) -> None:
    add(growing, json.dumps({"prompt": "x", "answer": [1]}) + "\n" + END)
    stream, said = source(settings(growing)), Display(Console(record=True, width=200))
    with stream.running(tmp_path):
        assert stream.wait_for(1, said)
    assert "question 'stream-1': field 'answer' must be text" in said.console.export_text()
    assert stream.key.answers == {}


def test_windows_know_their_neighbours(tmp_path: Path) -> None:
    windows = Windows(tmp_path)
    windows.open()
    assert windows.close(3, "full") == range(1, 4)
    assert windows.close(1, "end") == range(4, 5)
    again = Windows(tmp_path)
    again.open()
    assert [again.find(i, 4) for i in (1, 2, 3)] == [range(1, 4), range(4, 5), None]
    assert again.last == 4
    with pytest.raises(UserError, match=r"has 2 windows of 4 questions, expected those before win"):
        again.find(4, 9)
    with pytest.raises(UserError, match=r"before window 3, of 3 questions or fewer: put back what"):
        again.find(3, 3)  # the inbox has lost some
