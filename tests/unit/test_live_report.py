"""The page beside a running run: written by another process, which can fail and not be felt."""

from __future__ import annotations

import base64
import fcntl
import gzip
import io
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from report_runs import small_run
from rich.console import Console

from ttrl.report.display import Display
from ttrl.report.run_record import RunRecord
from ttrl.run import live_report
from ttrl.run.live_report import LiveReport
from ttrl.run.references import references
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks
from ttrl.types import AnswerKey, UserError


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunRecord]:
    """A run that this process holds, as one that trains in it does."""
    made = small_run(tmp_path / "run")
    (made.path / "summary.json").unlink()
    with (made.path / "config.toml").open("ab") as config:
        fcntl.flock(config, fcntl.LOCK_EX)
        yield made


def live(folder: Path, every_s: float = 60.0, rank: int = 0) -> tuple[LiveReport, io.StringIO]:
    said = io.StringIO()
    settings = load_settings("tiny-arithmetic", overrides=[f"report.every_s={every_s}"])
    ranks = Ranks(rank, 2) if rank else Ranks()
    key = AnswerKey({"q1": "7", "q2": "1/2", "q3": "30"})
    return LiveReport(folder, key, settings, Display(Console(file=said)), ranks), said


def test_the_page_follows_the_run_to_its_end(run: RunRecord) -> None:
    report, said = live(run.path)
    page = run.path / "report.html"
    report.refresh()
    process = report._process
    assert process is not None
    report.refresh()
    assert report._process is process  # one at a time
    process.wait(120)
    assert "Running when this was written" in page.read_text()
    report.refresh()
    assert report._process is None  # not due
    assert report._due > time.monotonic() + 50
    report.finish()
    text = page.read_text()
    assert "interrupted; it may go on" in text
    when = datetime.fromtimestamp((run.path / "metrics.jsonl").stat().st_mtime).astimezone()
    assert f"the last one written down {when:%Y-%m-%d %H:%M:%S %Z}</dd>" in text
    assert '"reload_s": 0' in text and "no longer refreshed" not in text
    assert said.getvalue() == ""
    assert not list(run.path.glob("*.tmp"))


def test_references_of_a_stream_are_those_of_all_that_has_come(tmp_path: Path) -> None:
    """From the folder: the process that trains may have begun in the middle, and holds few."""
    stream = ("data.source=stream", "data.train=-", "epochs=1", "optimizer.warmup_share=0.03")
    run = small_run(tmp_path / "run", *stream, "data.answer_field=the.answer")
    rows = [{"the.answer": 7}, "a text alone", {"the": {"answer": "1/2"}}, {"the.answer": [1]}]
    lines = [{"id": f"q{i}", "row": row} for i, row in enumerate(rows, start=1)]
    (run.path / "stream").mkdir()
    inbox = run.path / "stream" / "questions.jsonl"
    inbox.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "q5", "ro')
    assert references(run) == {"q1": "7", "q3": "1/2"}
    report = LiveReport(run.path, None, run.settings, Display(Console(quiet=True)), Ranks())
    report.finish()
    text = (run.path / "report.html").read_text()
    (packed,) = re.findall(r'id="packed-0-questions">([^<]*)<', text)
    questions = json.loads(gzip.decompress(base64.b64decode(packed)))["questions"]
    found = {question["id"]: question["reference"] for question in questions}
    assert found == {"q1": "7", "q2": None, "q3": "1/2"}


@pytest.mark.parametrize("line", ["[]", "{}", '{"id": "q"}', '{"id": [1], "row": {}}'])
def test_what_a_stream_has_not_accepted_is_refused(line: str, tmp_path: Path) -> None:
    stream = ("data.source=stream", "data.train=-", "epochs=1", "optimizer.warmup_share=0.03")
    run = small_run(tmp_path / "run", *stream)
    (run.path / "stream").mkdir()
    (run.path / "stream" / "questions.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"questions\.jsonl, line 1: expected an object with an id"):
        references(run)


def test_a_page_that_cannot_be_made_is_a_note(run: RunRecord) -> None:
    report, said = live(run.path)
    (run.path / "metrics.jsonl").write_text("{}\n")
    report.finish()
    report.finish()
    assert said.getvalue().count("report.html is not up to date: ") == 1
    assert "cannot read" in said.getvalue()


def test_a_page_that_takes_too_long_is_given_up(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, said = live(run.path)
    monkeypatch.setattr(live_report, "LAST_S", 0.01)
    report.finish()
    assert "not done in 0 s" in said.getvalue()
    assert not (run.path / "report.html").exists()


@pytest.mark.parametrize(("every_s", "rank"), [(0.0, 0), (60.0, 1)])
def test_no_page_without_the_setting_or_by_another_rank(
    run: RunRecord, every_s: float, rank: int
) -> None:
    report, _ = live(run.path, every_s, rank)
    report.refresh()
    report.finish()
    assert report._process is None
    assert not (run.path / "report.html").exists()


def test_a_process_that_takes_long_is_not_started_often(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = live(run.path)
    monkeypatch.setattr(live_report, "SHARE", 1e-6)
    report.finish()
    assert report._due > time.monotonic() + 1e5  # 20 times as long as it took, here a million
