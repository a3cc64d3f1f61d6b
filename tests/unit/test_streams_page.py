"""docs/streams.md: its program writes a stream, and its tables name what there is."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
from groups import group, voted
from rich.console import Console
from test_display import shown
from tiny_tokenizer import tiny_tokenizer

from ttrl.data.questions import QuestionReader
from ttrl.data.sources.base import WINDOW
from ttrl.report.display import Display, stream_table
from ttrl.rewards import majority_vote
from ttrl.settings.recipe import load_settings
from ttrl.stream.answers import answer_record
from ttrl.stream.inbox import Inbox
from ttrl.stream.lines import LONGEST, LineCutter

GROUP = group("7", "8", "7")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8")


def test_its_program_writes_questions_that_are_accepted(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        exec(program, {})
    settings = load_settings("tiny-stream").data
    inbox = Inbox(tmp_path, QuestionReader(settings, tiny_tokenizer()).read)
    inbox.open()
    for line in LineCutter("-").cut(written.getvalue().encode()):
        inbox.take(line)
    assert inbox.count == 200
    assert (tmp_path / "refused.jsonl").read_bytes() == b""


def test_what_it_says_of_numbers_and_names() -> None:
    assert f"a line of more than {LONGEST // 2**20} MiB" in PAGE
    assert f"the last\n{WINDOW} steps with the first {WINDOW}" in PAGE
    files = re.findall(r"^\| `(\w+)\.jsonl` \| (?:an? |the )", PAGE, re.MULTILINE)
    assert files[-5:] == ["questions", "refused", "windows", "answers", "adapted"]
    example = next(line for line in PAGE.splitlines() if line.startswith('    {"number"'))
    keys = ["number", "id", "step", "updates", *answer_record(GROUP, voted(GROUP).vote)]
    assert list(json.loads(example)) == keys


@pytest.mark.parametrize("total", [None, 12])
def test_a_run_without_an_end_shows_no_total(total: int | None) -> None:
    screen = io.StringIO()
    display = Display(Console(file=screen, width=200))
    with display.training(total):
        display.header(load_settings("tiny-stream"), total, {"train": 0, "held_out": 0}, "CPU")
        display.step(3, total, {"vote/majority_ratio": 0.5, "time/rollout_s": 2.0})
    lines = screen.getvalue().splitlines()
    assert ("steps      as long as questions come, of 8" in lines[2]) == (total is None)
    assert lines[4].startswith("step 3  majority" if total is None else "step  3/12  majority")
    assert any("steps to come" in line for line in lines) == (total is not None)


def test_the_table_at_the_end_of_a_stream() -> None:
    stream = {
        "questions": 10,
        "scored": 9,
        "first_accuracy_mean": 0.5,
        "first_accuracy_last_third": 0.75,
        "majority_accuracy_mean": 0.625,
        "majority_accuracy_last_third": 1.0,
        "tokens_per_question": 240.0,
        "seconds_per_question": 0.1,
    }
    assert shown(stream_table(stream)) == [
        ["9 of 10 questions", "first sample", "majority"],
        ["all", "50.0", "62.5"],
        ["last third", "75.0", "100.0"],
    ]
    adapted = {"adapted_first_accuracy_mean": 0.9, "adapted_majority_accuracy_mean": 1.0}
    assert shown(stream_table(stream | adapted))[-1] == ["adapted", "90.0", "100.0"]
    unknown = {key: stream[key] for key in stream if "accuracy" not in key} | {"scored": 0}
    assert shown(stream_table(unknown)) == [["0 of 10 questions", "first sample", "majority"]]


def test_what_it_says_was_measured_is_in_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    sys.modules.pop("stream", None)
    import stream

    record = json.loads((ROOT / "bench" / "results" / "stream.json").read_text(encoding="utf-8"))
    for lines in stream.page_tables(record):
        assert "\n".join(lines) in PAGE
    assert [len(record["runs"][name]) for name in stream.RUNS] == [5, 5, 5]
    found = stream.areas(record)
    for seed in found["frozen"]:  # in every order
        first = {row: found[row][seed]["first"] for row in found}
        assert min(first["continual"], first["continual, LoRA"]) > first["frozen"] + 0.15
        last = {row: found[row][seed]["first, last third"] for row in found}
        assert min(last["continual"], last["continual, LoRA"]) > last["per question, adapted"]
    tokens = [
        next(iter(record["runs"][name].values()))["tokens_per_question"]
        for name in ("continual", "per question")
    ]
    assert 8.5 < tokens[1] / tokens[0] < 9.5


def test_who_has_no_vote_does_not_speak() -> None:
    """Neither for the majority, nor where all who vote are silent."""
    answers = ("7", "8", None, "8")
    said = group(*answers)
    for voters, answer, speaker in (
        ((False, False, True, False), None, 2),
        ((False, False, True, True), "8", 3),
        ((True, False, True, False), "7", 0),
        (None, "8", 1),
    ):
        record = answer_record(said, majority_vote(answers, voters_G=voters))
        assert (record["answer"], record["first"]) == (answer, "7")
        assert record["response"] == said.completions[speaker].text
        assert record["votes"] == (4 if voters is None else sum(voters))
