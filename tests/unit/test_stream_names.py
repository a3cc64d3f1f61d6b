"""Names on disk: as a dict has them, and gone where the disk was full."""

from __future__ import annotations

import random
import resource
import signal
from pathlib import Path

import pytest

from ttrl.stream.names import AT_ONCE, Names


def test_names_are_those_of_a_dict(tmp_path: Path) -> None:
    names, twin, draw = Names(tmp_path), dict[tuple[str, str], int](), random.Random("names")
    texts = ["", "a", "é", "e\u0301", "\udcff", "x" * 100_000, *map(str, range(40))]
    for number in range(200):
        kind, text = draw.choice(("id", "file")), draw.choice(texts)
        assert names.find(kind, text) == twin.get((kind, text))  # type: ignore[arg-type]
        names.add(kind, text, number)  # type: ignore[arg-type]
        twin[kind, text] = number
    known = [text for text in texts if ("id", text) in twin]
    assert 5 < len(known) < len(texts)
    assert list(names.new("id", texts)) == [text for text in texts if text not in known]
    assert list(tmp_path.iterdir()) == []  # nothing is left of it, whatever ends the process


@pytest.mark.parametrize("folder", ["a b?c#d%20", "x'y", "\u2603", "bad\udcff"])
def test_the_folder_may_be_called_anything(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    names = Names(tmp_path / folder)
    names.add("id", "a", 1)
    assert (names.find("id", "a"), list((tmp_path / folder).iterdir())) == (1, [])


def test_many_names_are_looked_up_in_parts(tmp_path: Path) -> None:
    names, count = Names(tmp_path), 2 * AT_ONCE + 7
    names.add_all(("file", str(i), i) for i in range(0, count, 3))
    found = list(names.new("file", map(str, range(count))))
    assert found == [str(i) for i in range(count) if i % 3]
    assert names.find("file", "9") == 9


def test_a_name_is_forgotten_with_what_it_was_for(tmp_path: Path) -> None:
    names = Names(tmp_path)
    names.add("id", "old", 1)
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt), names.adding("id", name, 2):
            assert names.find("id", name) is not None
            raise KeyboardInterrupt
    assert (names.find("id", "old"), names.find("id", "new")) == (1, None)
    with names.adding("id", "new", 2):
        pass
    assert names.find("id", "new") == 2


def test_a_generator_that_fails_adds_nothing(tmp_path: Path) -> None:
    names = Names(tmp_path)
    with pytest.raises(ZeroDivisionError):
        names.add_all(("id", str(i), 1 // (3 - i)) for i in range(9))
    assert names.find("id", "0") is None
    names.add("id", "0", 5)
    assert names.find("id", "0") == 5


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    names = Names(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    added = 0
    try:
        with pytest.raises(OSError, match=r"names\.tmp"):
            for added in range(100_000):
                names.add("id", str(added), added)
        with pytest.raises(OSError, match="disk") as error:
            names.add_all(("file", str(i), i) for i in range(100_000))
        assert "transaction" not in str(error.value)  # its end is no reason of its own
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert 500 < added < 99_999
    assert [names.find("id", str(i)) for i in range(added)] == list(range(added))
    assert names.find("id", str(added)) is names.find("file", "0") is None
    names.add("id", str(added), added)  # there is room again
    assert names.find("id", str(added)) == added
