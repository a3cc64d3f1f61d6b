"""What a stream is read from: lines that come in pieces, files that grow, folders, pipes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from ttrl.stream import lines as lines_module
from ttrl.stream.inputs import Folder, GrowingFile, Input, Pipe, holds, refuse_no_input
from ttrl.stream.lines import Line, LineCutter, Place
from ttrl.types import UserError


class Read:
    """Remembers the names of files, as `Names` does on disk."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def add(self, kind: str, name: str) -> None:
        self.names.add(name)

    def new(self, kind: str, names: Iterable[str]) -> Iterator[str]:
        return (name for name in names if name not in self.names)


def texts(lines: Sequence[Line] | None) -> list[str]:
    return [line.text.decode() for line in lines or ()]


def drained(source: Input) -> list[str]:
    """All that is there now."""
    found: list[str] = []
    while lines := source.read(0):
        found += texts(lines)
    return found


def twin(content: bytes) -> list[tuple[bytes, int, int, int]]:
    """(text, number, begin, end) of all whole lines, from the whole content."""
    found, begin = [], 0
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        found.append((text, number, begin, begin + len(text) + 1))
        begin += len(text) + 1
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_give_the_lines_of_the_whole(size: int) -> None:
    content = '{"a": 1}\r\n\n  \nünï\n"half'.encode()
    cutter, found = LineCutter("f"), []
    for begin in range(0, len(content), size):
        found += cutter.cut(content[begin : begin + size])
    at = [(x.text, x.place.line, x.place.begin, x.place.end) for x in found]
    assert at == twin(content)
    assert [x.place.crc for x in found] == [zlib.crc32(x.text) for x in found]
    assert cutter.read == len(content)
    (last,) = cutter.rest()
    assert (last.text, last.place.line) == (b'"half', 5)
    assert (last.place.begin, last.place.end) == (len(content) - 5, len(content))
    assert cutter.rest() == []


def test_a_huge_line_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LONGEST", 100)
    monkeypatch.setattr(lines_module, "SHOWN", 10)
    cutter = LineCutter("f")
    for _ in range(50):
        assert cutter.cut(b"abcdefg") == []
        assert sum(map(len, cutter._parts)) <= 107
    long, short = cutter.cut(b"\nnext\n")
    assert (long.text, long.is_cut, long.place.end) == (b"abcdefgabc", True, 351)
    assert long.place.crc == zlib.crc32(b"abcdefg" * 50)
    assert (short.text, short.is_cut, short.place.line) == (b"next", False, 2)
    exact = LineCutter("f").cut(b"x" * 100 + b"\n")[0]
    assert (len(exact.text), exact.is_cut) == (100, False)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    first, second = LineCutter("f").cut(b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n")
    assert (first.text, second.text) == (b"1", b"\xef\xbb\xbf2")


# ---------------------------------------------------------------------------------------------
# A file that grows


def test_a_file_that_grows_by_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"one\r\ntw")
    source = GrowingFile(path)
    assert drained(source) == ["one\r"]
    with path.open("ab") as file:
        for piece, expected in ((b"o", []), (b"\nthree\nfo", ["two", "three"]), (b"ur", [])):
            file.write(piece)
            file.flush()
            assert drained(source) == expected
    assert texts(source.rest()) == ["four"]


def test_a_file_is_gone_on_with_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"one\ntwo\nthree\nfo")
    first = GrowingFile(path)
    (one, two, three) = first.read(0) or ()
    assert (one.place.line, three.place.line) == (1, 3)
    again = GrowingFile(path, two.place)
    assert drained(again) == ["three"]
    with path.open("ab") as file:
        file.write(b"ur\n")
    (four,) = again.read(0) or ()
    assert (four.text, four.place.line, four.place.begin) == (b"four", 4, 14)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\n", "has 4 bytes, of which 8 were read"),
        (b"one\nTWO\nthree\n", "has another line 2 than when it was read"),
        (b"three\none\ntwo\n", "has another line 2"),
    ],
)
def test_a_file_that_lost_what_was_read_is_refused(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"one\ntwo\n")
    source = GrowingFile(path)
    *_, last = source.read(0) or ()
    path.write_bytes(content)  # in place
    with pytest.raises(UserError, match=words):
        source.read(0)
    with pytest.raises(UserError, match=words):
        GrowingFile(path, last.place)


def test_a_file_that_was_replaced_or_removed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"one\n")
    source = GrowingFile(path)
    assert drained(source) == ["one"]
    (tmp_path / "other").write_bytes(b"one\ntwo\n")
    (tmp_path / "other").rename(path)
    with pytest.raises(UserError, match="was replaced by another file: a stream's file only grows"):
        source.read(0)
    path.unlink()
    with pytest.raises(UserError, match="is not there any more"):
        source.read(0)


def test_a_long_line_is_not_read_again_while_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Place] = []

    def counted(descriptor: int, place: Place) -> bool:
        looked.append(place)
        return holds(descriptor, place)

    monkeypatch.setattr("ttrl.stream.inputs.holds", counted)
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"x" * 1000 + b"\n")
    source = GrowingFile(path)
    assert len(drained(source)) == 1
    before = len(looked)
    for _ in range(5):
        assert source.read(0) == []
    assert len(looked) <= before + 1
    path.write_bytes(b"y" * 1000 + b"\n")  # as long, and another
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="has another line 1"):
        source.read(0)


def test_a_line_is_known_again_by_all_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"x" * 200_000 + b"\ny")
    with path.open("rb") as file:
        long = Place("q", 1, 0, 200_001, zlib.crc32(b"x" * 200_000))
        last = Place("q", 2, 200_001, 200_002, zlib.crc32(b"y"))
        assert holds(file.fileno(), long) and holds(file.fileno(), last)
        assert not holds(file.fileno(), Place("q", 1, 0, 200_001, long.crc + 1))
        assert not holds(file.fileno(), Place("q", 2, 200_001, 200_003, last.crc))


# ---------------------------------------------------------------------------------------------
# A folder


def test_a_folder_is_read_by_name_each_file_once(tmp_path: Path) -> None:
    for name, content in (("b.jsonl", b"b1\nb2"), ("a.jsonl", b"a1\n"), ("c.jsonl", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".d.jsonl").write_bytes(b"hidden\n")
    (tmp_path / "e.jsonl.tmp").write_bytes(b"being written\n")
    (tmp_path / "f.jsonl").mkdir()
    (tmp_path / "circle.jsonl").symlink_to(tmp_path / "circle.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "none")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.jsonl")
    source = Folder(tmp_path, Read())
    found = texts(source.read(0))
    (tmp_path / "aa.jsonl").write_bytes(b"aa1\n")  # while a.jsonl is being read
    (tmp_path / "0.jsonl").write_bytes(b"01\n")
    for _ in range(20):
        found += texts(source.read(0))
    assert found == ["a1", "01", "aa1", "b1", "b2"]  # a last line needs no end
    (tmp_path / "a.jsonl").write_bytes(b"a1\nmore\n")  # its turn is over
    (tmp_path / "z.jsonl").write_bytes(b"z\n")
    assert [x for _ in range(5) for x in texts(source.read(0))] == ["z"]
    assert source.rest() == []


def test_a_folder_is_gone_on_with_in_the_file_that_was_left(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"a\n")
    (tmp_path / "b.jsonl").write_bytes(b"b1\nb2\nb3\n")
    last = (GrowingFile(tmp_path / "b.jsonl").read(0) or ())[1].place
    (tmp_path / "aa.jsonl").write_bytes(b"aa\n")
    source = Folder(tmp_path, Read("a.jsonl"), last)
    assert [x for _ in range(6) for x in texts(source.read(0))] == ["b3", "aa"]
    (tmp_path / "b.jsonl").unlink()  # what is gone is taken for read
    source = Folder(tmp_path, Read("a.jsonl"), last)
    assert [x for _ in range(6) for x in texts(source.read(0))] == ["aa"]


def test_a_file_of_a_folder_may_be_removed_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been begun is read to its end; what is gone before it is opened is skipped."""
    long = b"x" * 70_000
    for name, content in (("a", b"a1\n"), ("b", b"b1\n" + long + b"\nb3"), ("c", b""), ("d", b"d")):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    source = Folder(tmp_path, Read())
    assert texts(source.read(0)) == ["a1"]
    (tmp_path / "a.jsonl").unlink()
    assert texts(source.read(0)) == ["b1"]
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").write_bytes(b"another of that name\n")
    assert texts(source.read(0)) == [long.decode()]
    names = source._names
    vanished = iter([["c.jsonl", "gone.jsonl"], ["b0.jsonl", "d.jsonl"]])
    monkeypatch.setattr(source, "_names", lambda: next(vanished, names()))
    assert texts(source.read(0)) == ["b3"]
    assert [x for _ in range(4) for x in texts(source.read(0))] == ["d"]


def test_a_folder_s_files_are_named_in_any_case_of_letters(tmp_path: Path) -> None:
    for name in ("A.JSONL", "b.Jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(name.encode())
    source = Folder(tmp_path, Read())
    assert [x for _ in range(6) for x in texts(source.read(0))] == ["A.JSONL", "b.Jsonl", "c.jsonl"]


# ---------------------------------------------------------------------------------------------
# A pipe


def test_a_pipe_until_its_writer_closes_it() -> None:
    ours, theirs = os.pipe()
    source = Pipe(ours)
    assert source.read(0) == []
    os.write(theirs, b"one\ntw")
    assert texts(source.read(0)) == ["one"]
    os.write(theirs, b"o")
    assert source.read(0) == []
    os.close(theirs)
    assert source.read(0) is None
    assert texts(source.rest()) == ["two"]
    os.close(ours)


def test_a_pipe_that_another_process_reads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    monkeypatch.setattr("select.select", lambda *_: ([ours], [], []))
    source = Pipe(ours)
    assert source.read(0) == []
    os.write(theirs, b"one\n")
    assert texts(source.read(0)) == ["one"]
    os.close(theirs)
    assert source.read(0) is None
    os.close(ours)


def test_standard_input_that_is_closed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_no_input("-")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match=r"standard input is closed: .* < /dev/null to go on"):
        refuse_no_input("-")


def test_what_no_stream_can_be_read_from(tmp_path: Path) -> None:
    for name in ("q.jsonl", "q.csv"):
        (tmp_path / name).write_text("")
    for fine in ("-", str(tmp_path), str(tmp_path / "q.jsonl")):
        refuse_no_input(fine)
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("none.jsonl", "there is no such file or folder"),
        ("q.csv", "expected a .jsonl file, one question per line, a folder"),
        ("fifo", 'is no file that could be read again: .* set data.train = "-", and add < '),
    ):
        with pytest.raises(UserError, match=words):
            refuse_no_input(str(tmp_path / name))
