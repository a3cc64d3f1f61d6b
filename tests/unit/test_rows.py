"""Every kind of source, and what can be wrong with it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ttrl.data.rows import Rejection, Row, read_rows
from ttrl.settings import DataSettings
from ttrl.types import UserError

ROWS = [{"prompt": "1 + 1", "answer": "2"}, {"prompt": "2 + 2", "answer": 4}]


def read(source: object, **settings: object) -> list[Row | Rejection]:
    return list(
        read_rows(str(source), DataSettings.model_validate({"train": "unused", **settings}))
    )


def values(source: object) -> list[object]:
    return [row.value for row in read(source)]


# ---------------------------------------------------------------------------------------------
# Files


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(ROWS))
    assert read(path) == [Row("index 0", ROWS[0]), Row("index 1", ROWS[1])]


def test_jsonl_counts_lines_from_one_and_skips_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n  \r\n{json.dumps(ROWS[1])}\r\n")
    assert read(path) == [Row("line 1", ROWS[0]), Row("line 4", ROWS[1])]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "q.PARQUET"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", None], "level": [1, 2]}), path)
    assert read(path) == [
        Row("index 0", {"prompt": "a", "level": 1}),
        Row("index 1", {"prompt": None, "level": 2}),
    ]


def test_a_broken_line_is_rejected_and_the_others_survive(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    deep, long_number = "[" * 100_000, "1" * 5000
    lines = [json.dumps(ROWS[0]), '{"prompt": ', deep, long_number, json.dumps(ROWS[1])]
    path.write_text("\n".join(lines))
    first, *broken, last = read(path)
    assert (first, last) == (Row("line 1", ROWS[0]), Row("line 5", ROWS[1]))
    assert [rejection.place for rejection in broken] == ["line 2", "line 3", "line 4"]
    assert str(broken[0]) == f"{path}:line 2: not JSON: Expecting value at column 12"
    assert all("\n" not in str(rejection) for rejection in broken)


def test_a_line_in_another_encoding_is_rejected_and_the_others_survive(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n' + json.dumps(ROWS[0]).encode())
    rejection, row = read(path)
    assert rejection.place == "line 1"
    assert "can't decode byte 0xe9" in rejection.reason
    assert row.value == ROWS[0]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}', encoding="utf-8")
    assert values(path) == [{"prompt": "a\u2028b\x85c"}]


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_a_byte_order_mark_is_tolerated(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = json.dumps(ROWS[:1] if name == "q.json" else ROWS[0])
    path.write_text(text, encoding="utf-8-sig")
    assert values(path) == ROWS[:1]


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_utf16_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS), encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16 text, expected UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"prompt": "a"},\n {"prompt"}]', "not valid JSON: .*line 2 column 11"),
        (b'{"prompt": "a"}\n{"prompt": "b"}', "not valid JSON: Extra data.*name it .jsonl"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (
            b'{"data": []}',
            r"holds a JSON dict, expected a list.*keys are \['data'\]: save the list",
        ),
        (b"3", "holds a JSON int, expected a list"),
        (b'["caf\xe9"]', "is not UTF-8 text .*position 5"),
    ],
)
def test_a_json_file_that_cannot_be_read_as_a_whole(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    path.write_text("not parquet")
    with pytest.raises(UserError, match=r"q\.parquet is not a readable parquet file: Arrow"):
        read(path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match=r"no file at .*trian.jsonl \(did you mean .*/train.jsonl"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(
        UserError, match=r"no file at nowhere/q.json, neither beside the recipe nor"
    ):
        read("nowhere/q.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="no file at"):
        read(tmp_path / "folder.json")


@pytest.mark.parametrize(
    ("source", "suggestion"),
    [("q.jsonlines", ".jsonl"), ("q.json5", ".json"), ("q.parqet", ".parquet")],
)
def test_an_unknown_suffix_names_the_nearest(source: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"unknown data source '{source}'.*mean '{suggestion}'"):
        read(source)


@pytest.mark.parametrize("source", ["", "OWNER/NAME", "q.xml", "s3:bucket/q"])
def test_an_unknown_source_says_what_is_possible(source: str) -> None:
    with pytest.raises(
        UserError, match=r'expected a file that ends in \.jsonl.* or "arithmetic:tr'
    ):
        read(source)


def test_json_numbers_keep_their_spelling(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"a": 0.00001, "b": 1e16, "c": 1E-7, "d": 46, "e": 2.50}')
    (row,) = read(path)
    assert [str(number) for number in row.value.values()] == [
        *("0.00001", "1e16", "1E-7", "46", "2.50")
    ]
    assert row.value["a"] == 1e-5


def test_float32_of_parquet_keep_their_value(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    column = pyarrow.array([0.1, None, 1e-5, 3], pyarrow.float32())
    pyarrow.parquet.write_table(pyarrow.table({"answer": column}), path)
    assert [str(value["answer"]) for value in values(path)] == ["0.1", "None", "0.00001", "3.0"]


def test_csv_is_a_header_and_rows_named_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "q.CSV"
    path.write_bytes(b'\xef\xbb\xbfprompt, answer\r\n"Add 1, 2\r\nand ""3"".",0046\r\n\r\n$x$,\r\n')
    assert read(path) == [
        Row("line 2", {"prompt": 'Add 1, 2\r\nand "3".', "answer": "0046"}),
        Row("line 5", {"prompt": "$x$", "answer": ""}),
    ]


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    path.write_text("prompt\tanswer\n1, 2\t3\n")
    assert values(path) == [{"prompt": "1, 2", "answer": "3"}]


def test_a_row_with_too_many_cells_is_rejected_and_the_others_survive(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("prompt,answer\nAdd 1, 2,3\nb,4\nc\n")
    long, row, short = read(path)
    assert (long.place, row.place, short.place) == ("line 2", "line 3", "line 4")
    assert long.reason.startswith("3 cells, but the header has 2: a cell that holds ','")
    assert short.reason.startswith("1 cells, but the header has 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('prompt,answer\na,1\n"b,2\n', r"q\.csv: not a table, at line 3: unexpected end of data"),
        ("prompt,prompt\na,1\n", "two columns have the same name"),
    ],
)
def test_a_table_that_cannot_be_read_as_a_whole(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_txt_is_one_question_a_line(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_bytes("What is 1 + 2?\r\n\n a\u2028b\n".encode())
    assert read(path) == [Row("line 1", "What is 1 + 2?"), Row("line 3", " a\u2028b")]


@pytest.mark.parametrize("name", ["q.txt", "q.csv"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"prompt\ncaf\xe9\n")
    with pytest.raises(UserError, match=f"{name} is not UTF-8 text .*save it as UTF-8"):
        read(path)


def test_what_is_not_read_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "q.xlsx").touch()
    with pytest.raises(
        UserError, match=r"python -c \"import pandas; pandas.read_excel\('.*q.xlsx'"
    ):
        read(tmp_path / "q.xlsx")
    (tmp_path / "saved").mkdir()
    with pytest.raises(UserError, match=r"datasets.load_from_disk\('.*saved'\).to_json\('q.jsonl'"):
        read(tmp_path / "saved")


def test_the_lines_that_convert_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list([{"prompt": "1 + 1"}]).save_to_disk("saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for source in ("saved", arrow):
        with pytest.raises(UserError) as error:
            read(source)
        exec(str(error.value).rpartition('python -c "')[2].removesuffix('"'), {})
        assert values("q.jsonl") == [{"prompt": "1 + 1"}]
        (tmp_path / "q.jsonl").unlink()


# ---------------------------------------------------------------------------------------------
# The embedded task


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_arithmetic(split: str) -> None:
    rows = read(f"arithmetic:{split}")
    assert rows[0].place == "index 0"
    assert {"prompt", "answer", "id", "level"} <= rows[0].value.keys()
    assert len({row.value["id"] for row in rows}) == len(rows) > 0


def test_an_unknown_split_of_the_embedded_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'arithmetic:heldout' \(did you mean 'held_out'\?\)"):
        read("arithmetic:heldout")
    with pytest.raises(UserError, match="expected one of arithmetic:train, arithmetic:held_out"):
        read("arithmetic")


# ---------------------------------------------------------------------------------------------
# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for `datasets`; its ``calls`` are what `load_dataset` was given."""
    module = types.ModuleType("datasets")
    module.calls = []
    module.outcome = ROWS

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        module.calls.append((args, kwargs))
        if isinstance(module.outcome, Exception):
            raise module.outcome
        return module.outcome

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_hub(hub: types.ModuleType) -> None:
    rows = read("hub:OWNER/NAME", split="test", subset="main", revision="abc")
    assert rows == [Row("index 0", ROWS[0]), Row("index 1", ROWS[1])]
    assert hub.calls == [(("OWNER/NAME", "main"), {"split": "test", "revision": "abc"})]


def test_hub_code_is_never_trusted(hub: types.ModuleType) -> None:
    read("hub:OWNER/NAME")
    ((_, options),) = hub.calls
    assert "trust_remote_code" not in options


def test_a_hub_failure_is_one_line_that_says_what_to_do(hub: types.ModuleType) -> None:
    hub.outcome = ValueError("Unknown split 'x'.\nShould be one of ['test'].")
    with pytest.raises(UserError) as error:
        read("hub:OWNER/NAME", split="x")
    message = str(error.value)
    assert message.startswith("cannot load hub:OWNER/NAME (data.split = 'x'")
    assert "ValueError: Unknown split 'x'." in message
    assert "give its file" in message
    assert "\n" not in message


@pytest.mark.parametrize("source", ["hub:", "hub:NAME", "hub:OWNER/", "hub:a/b/c"])
def test_a_hub_name_needs_an_owner_and_a_name(hub: types.ModuleType, source: str) -> None:
    with pytest.raises(UserError, match="expected hub:OWNER/NAME"):
        read(source)
    assert hub.calls == []


def test_the_real_library_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"cannot load hub:nobody/nothing .*Error: .*give its file"):
        read("hub:nobody/nothing")


def test_a_long_cell_is_one_question(tmp_path: Path) -> None:
    """The question may be refused for its length, by its row; the others of the file are not."""
    path = tmp_path / "q.csv"
    path.write_text(f'prompt,answer\n"{"x" * 200_000}",1\ny,2\n')
    rows = [
        row.value
        for row in read_rows(str(path), DataSettings(train="q.csv"))
        if isinstance(row, Row)
    ]
    assert [(len(row["prompt"]), row["answer"]) for row in rows] == [(200_000, "1"), (1, "2")]
