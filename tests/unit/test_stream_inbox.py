"""What a stream accepts, and what it refuses and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer

from ttrl.data.questions import QuestionReader
from ttrl.data.rows import Row
from ttrl.run.disk import Disk
from ttrl.settings import DataSettings
from ttrl.stream import appended
from ttrl.stream.inbox import Inbox, TakenId
from ttrl.stream.lines import LONGEST, Line, LineCutter, Place
from ttrl.types import UserError

READ = QuestionReader(DataSettings(train="-", max_prompt_tokens=64), tiny_tokenizer()).read
PLAIN: dict[str, Any] = {"prompt": "What is 1 + 2?"}


def inbox(folder: Path) -> Inbox:
    made = Inbox(folder, READ)
    made.open()
    return made


def lines(*texts: str | bytes) -> list[Line]:
    return LineCutter("f").cut(
        b"".join((t.encode() if isinstance(t, str) else t) + b"\n" for t in texts)
    )


def take(into: Inbox, *texts: str | bytes) -> list[bool]:
    return [into.take(line) for line in lines(*texts)]


def kept(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_accepted_rows_are_on_disk_in_their_order(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    rows = [PLAIN | {"id": "a", "answer": 0.10, "level": 2}, PLAIN, "What is 3 + 4?"]
    assert take(box, *map(json.dumps, rows)) == [False] * 3
    assert box.count == 3
    first, second, third = kept(tmp_path, "questions")
    assert [x["id"] for x in (first, second, third)] == ["a", "stream-2", "stream-3"]
    assert [x["row"] for x in (first, second, third)] == rows
    assert (first["number"], first["read"], first["file"], first["line"]) == (1, 1, "f", 1)
    assert (second["begin"], second["end"]) == (first["end"], third["begin"])
    assert kept(tmp_path, "refused") == []
    again = inbox(tmp_path).question(1, READ)
    assert (again.question.id, again.answer, again.level) == ("a", "0.1", "2")
    assert again.question == READ(Row("stream 1", rows[0])).question


def test_numbers_of_an_answer_keep_their_spelling(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    take(box, '{"prompt": "x", "answer": 1.50}', '\t{"prompt": "y", "answer": 1e-7} \r')
    assert [box.question(i, READ).answer for i in (1, 2)] == ["1.50", "1e-7"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: Expecting property name"),
        (b'{"prompt": "\xff"}', "not JSON: 'utf-8' codec can't decode"),
        ('{"question": "x"}', r"no field 'prompt' \(data.prompt_field\): --set data.prompt_field="),
        ('{"prompt": " "}', "field 'prompt' is empty"),
        ('{"prompt": "<|im_end|>"}', "control token"),
        ('{"prompt": "%s"}' % ("9 " * 64), "more than data.max_prompt_tokens = 64"),
        ('{"prompt": "x", "id": [1]}', "field 'id' must be text or a whole number"),
        ('{"prompt": "x", "id": "\\ud800"}', "half of a surrogate pair"),
        (
            '{"prompt": "x", "id": "\\u001b[31mred"}',
            "expected at most 256 characters, all printable",
        ),
        ('{"prompt": "x", "id": "%s"}' % ("x" * 257), "expected at most 256 characters, all print"),
        ("7", "expected an object or a question's text, got 7"),
        ("[" * 70 + "]" * 70, "more than 64 lists and objects inside each other"),
        ("[" * 100_000, "not JSON: "),
        ("1" * 5000, "not JSON: Exceeds the limit"),
    ],
)
def test_a_row_that_cannot_be_a_question_is_refused(
    text: str | bytes, reason: str, tmp_path: Path
) -> None:
    box = inbox(tmp_path)
    take(box, text, json.dumps(PLAIN))
    (found,) = kept(tmp_path, "refused")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found["reason"])
    assert len(found["text"]) <= 200 and found["read"] == 1
    (accepted,) = kept(tmp_path, "questions")
    assert (accepted["id"], accepted["read"], accepted["line"]) == ("stream-1", 2, 2)


def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    assert not box.take(Line(b'{"prompt": "', Place("f", 1, 0, LONGEST + 2, 5), is_cut=True))
    (found,) = kept(tmp_path, "refused")
    assert (found["reason"], found["text"]) == (f"longer than {LONGEST} bytes", '{"prompt": "')


def test_an_id_is_answered_once(tmp_path: Path) -> None:
    one, same, other = ({"prompt": p, "id": i} for p, i in (("1", 7), ("2", "7"), ("3", "8")))
    take(inbox(tmp_path), *map(json.dumps, (one, same)))
    take(inbox(tmp_path), *map(json.dumps, (one, other)))
    assert [x["id"] for x in kept(tmp_path, "questions")] == ["7", "8"]
    refused = kept(tmp_path, "refused")
    assert [x["read"] for x in refused] == [2, 3]
    assert {x["reason"] for x in refused} == {
        "the id '7' was accepted before; a question is answered once"
    }


def test_the_disk_is_full_and_then_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be kept was not accepted, and the same row is accepted later."""

    class Full(Disk):
        def append(self, path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    box = inbox(tmp_path)
    take(box, json.dumps(PLAIN | {"id": "a"}))
    with monkeypatch.context() as patched:
        patched.setattr(appended, "disk", Full())
        for row in ({"id": "b"}, {"prompt": ""}):
            with pytest.raises(OSError, match="No space left"):
                take(box, json.dumps(PLAIN | row))
    assert (box.count, box.progress.lines) == (1, 1)
    take(box, *(json.dumps(PLAIN | {"id": name}) for name in "cb"))
    assert [x["id"] for x in kept(tmp_path, "questions")] == ["a", "c", "b"]
    assert [inbox(tmp_path).question(i, READ).question.id for i in (1, 2, 3)] == ["a", "c", "b"]


@pytest.mark.parametrize(
    "more", [b"NaN", b"[1.50, -Infinity]", b'{"b": 1e400, "a": "\\ud83d\\ude00"}']
)
def test_a_row_that_is_sent_again_is_known_again(more: bytes, tmp_path: Path) -> None:
    row = b'{"id": "a", "prompt": "What is 1 + 2?", "more": %s}' % more
    box = inbox(tmp_path)
    for is_new in (True, False, False):
        assert box.accept(box.checked(row), lambda: True) == (1, is_new)
    box = inbox(tmp_path)
    assert box.accept(box.checked(row), lambda: True) == (1, False)
    with pytest.raises(TakenId):
        box.accept(box.checked(row.replace(b'"more"', b'"other"')), lambda: True)


def test_a_question_without_a_name_is_accepted_whatever_others_are_called(tmp_path: Path) -> None:
    taken = [PLAIN | {"id": name} for name in ("stream-3", "stream-3-2")]
    box = inbox(tmp_path)
    take(box, *map(json.dumps, [*taken, PLAIN, PLAIN]))
    names = [x["id"] for x in kept(tmp_path, "questions")]
    assert names == ["stream-3", "stream-3-2", "stream-3-3", "stream-4"]
    assert box.question(3, READ).question.id == "stream-3-3"


def test_a_line_that_ends_the_stream(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    assert take(box, "", "  ", json.dumps(PLAIN), '{ "end_of_stream": true }') == [
        False,
        False,
        False,
        True,
    ]
    others = ['{"end_of_stream": false}', '{"end_of_stream": 1}', '{"end_of_stream": 1.0}']
    others.append('{"end_of_stream": true, "prompt": "x"}')
    assert take(box, *others) == [False] * 4
    assert (box.count, len(kept(tmp_path, "refused"))) == (2, 3)


def test_how_far_an_input_was_read_is_in_the_two_files(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    for file, text in (("a", json.dumps(PLAIN)), ("b", "{"), ("c", json.dumps(PLAIN)), ("d", "{")):
        box.take(LineCutter(file).cut(f"\n{text}\n".encode())[1])
    for read in (box, inbox(tmp_path)):
        assert read.progress.last is not None
        assert (read.progress.last.file, read.progress.last.line) == ("d", 2)
        assert list(read.names.new("file", "abcde")) == ["e"]
        assert read.progress.lines == 4


def test_half_a_line_of_a_killed_process_is_taken_off(tmp_path: Path) -> None:
    take(inbox(tmp_path), json.dumps(PLAIN))
    whole = (tmp_path / "questions.jsonl").read_bytes()
    take(inbox(tmp_path), json.dumps(PLAIN))
    path = tmp_path / "questions.jsonl"
    for size in range(len(whole), path.stat().st_size):
        path.write_bytes((whole * 2)[:size])
        assert inbox(tmp_path).count == 1
        assert path.read_bytes() == whole


@pytest.mark.parametrize("left", [[1, 0], [0, 2], [0, 0]])
def test_lines_in_another_order_are_not_ours(left: list[int], tmp_path: Path) -> None:
    """A line is found by its number, which grows: anything else would find another question."""
    take(inbox(tmp_path), *map(json.dumps, [PLAIN, PLAIN, PLAIN]))
    path = tmp_path / "questions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in left))
    with pytest.raises(UserError, match=r"questions.jsonl: a line is not one of ours \(question"):
        inbox(tmp_path)


def test_a_file_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"questions.jsonl: a line is not one of ours .* put the"):
        inbox(tmp_path)
