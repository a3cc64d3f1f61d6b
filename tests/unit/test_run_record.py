"""A run's folder, read back; and the answers in it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from results import result

from ttrl.report.results import results_json
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup, read_groups, recorded_line
from ttrl.report.run_record import is_run, read_run
from ttrl.run.resume import changed_settings
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two steps, measured before and killed in the middle of its third line."""
    path = tmp_path / "run"
    (path / "rollouts").mkdir(parents=True)
    (path / "evaluations").mkdir()
    settings = load_settings("tiny-arithmetic", overrides=["seed=5"])
    (path / "config.toml").write_text(settings.to_toml())
    lines = [
        {"step": 0, "eval/train/pass@1": 0.5},
        {"step": 1, "vote/majority_ratio": 0.25},
        {"step": 2, "vote/majority_ratio": 0.75, "eval/train/pass@1": 0.625},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"step": 3, "vo')
    for step in (2, 10):
        (path / "rollouts" / f"step_{step:05d}.jsonl").write_text(json.dumps(LINE) + "\n")
    (path / "rollouts" / "mine.jsonl").write_text("")
    (path / "evaluations" / "step_00000.json").write_text(results_json([result("m", [0.5])]))
    return path


LINE = {
    "question": "q",
    "prompt": "1 + 1?",
    "policy_version": 1,
    "label": "2",
    "majority_ratio": 0.5,
    "completions": [
        {"text": "2", "answer": "2", "reward": 1.0, "tokens": 3, "finish_reason": "stop"},
        {"text": "eh", "answer": None, "reward": 0.0, "tokens": 8, "finish_reason": "length"},
    ],
}


def test_what_a_run_left(folder: Path) -> None:
    run = read_run(folder)
    assert run.settings.seed == 5
    assert [line["step"] for line in run.steps] == [1, 2]
    assert run.baseline == {"step": 0, "eval/train/pass@1": 0.5}
    assert run.curve("vote/majority_ratio") == [(1, 0.25), (2, 0.75)]
    assert run.curve("eval/train/pass@1") == [(0, 0.5), (2, 0.625)]
    assert run.sampled == [2, 10]
    (measured,) = run.evaluations()
    assert measured.flat() == {"pass@1": 0.5}
    assert run.groups(10) == [
        RecordedGroup(
            "q",
            "1 + 1?",
            (
                RecordedAnswer("2", 3, False, "2", 1.0),
                RecordedAnswer("eh", 8, True, None, 0.0),
            ),
            judged=True,
            label="2",
            majority_ratio=0.5,
        )
    ]


def test_how_a_run_stands(folder: Path) -> None:
    assert read_run(folder).state == "unfinished"
    with (folder / "config.toml").open("ab") as config:
        fcntl.flock(config, fcntl.LOCK_EX)
        assert read_run(folder).state == "running"
    summary = folder / "summary.json"
    summary.write_text('{"steps": 2, "stopped": null}')
    assert read_run(folder).state == "finished"
    summary.write_text('{"steps": 2, "stopped": "a guard"}')
    assert read_run(folder).state == "stopped"


def test_looking_takes_no_claim(folder: Path) -> None:
    read_run(folder)
    with (folder / "config.toml").open("ab") as config:
        fcntl.flock(config, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with pytest.raises(UserError, match=r"is no run: it has no config\.toml"):
        read_run(tmp_path)
    (folder / "metrics.jsonl").write_text('{"steps": 1}\n')
    with pytest.raises(
        UserError, match=r"cannot read .*metrics\.jsonl: line 1: expected an object"
    ):
        read_run(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "JSONDecodeError"),
        ('{"question": "q"}', "KeyError: 'prompt'"),
        ('{"question": 3, "prompt": "p", "completions": []}', "expected text, got 3"),
        (
            '{"question": "q", "prompt": "p", "completions": '
            '[{"text": "x", "tokens": 1, "finish_reason": "bored"}]}',
            "'bored' is not a valid FinishReason",
        ),
    ],
)
def test_a_line_that_is_not_ours_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + line + "\n")
    with pytest.raises(UserError, match=rf"x\.jsonl, line 2: .*{message}"):
        read_groups(path)


SURE = {"likeliest": 2, "certainty": 0.5, "tokens": [0.75]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": float("inf")}, "a whole number from 0 on, got inf"),
        ({"tokens": -1}, "a whole number from 0 on, got -1"),
        ({"tokens": 1.5}, "a whole number from 0 on, got 1.5"),
        ({"tokens": "1"}, "a whole number from 0 on, got '1'"),
        ({"tokens": True}, "a whole number from 0 on, got True"),
        ({"surprisal": float("nan")}, "a finite number, got nan"),
        ({"reward": "1"}, "a finite number, got '1'"),
        ({"answer": 3}, "expected text, got 3"),
        (
            {"turn": 0.5, "agent": 0, "trajectory": 0, "role": "x"},
            "whole number from 0 on, got 0.5",
        ),
        ({"turn": 0, "agent": 0, "trajectory": 0, "role": None}, "expected text, got None"),
        ({"confidence": {**SURE, "likeliest": float("inf")}}, "over inf likeliest"),
        ({"confidence": {**SURE, "likeliest": -2}}, "over -2 likeliest"),
        ({"confidence": {**SURE, "tokens": [1e300]}}, "expected 1 finite numbers"),
        ({"confidence": {**SURE, "tokens": []}, "tokens": 0}, "confidence of 0 tokens"),
    ],
)
def test_an_answer_that_is_not_ours_is_refused(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    said = {"text": "x", "tokens": 1, "finish_reason": "stop"}

    def write(more: dict[str, object]) -> None:
        line = {"question": "q", "prompt": "p", "completions": [said | more]}
        path.write_text(json.dumps(line) + "\n")

    write({"confidence": SURE, "surprisal": 1, "answer": "3", "reward": 0})
    ((answer,),) = [group.answers for group in read_groups(path)]
    assert (answer.surprisal, answer.reward, list(answer.confidence.tokens)) == (1.0, 0.0, [0.75])  # type: ignore[union-attr]
    write(changed)
    with pytest.raises(UserError, match=rf"x\.jsonl, line 1: ValueError: .*{message}"):
        read_groups(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"completions": {}}, "completions: expected a list"),
        ({"data": ["x"]}, "expected text"),
        ({"label": 3}, "expected text, got 3"),
        ({"majority_ratio": "0.5"}, "expected a finite number"),
        ({"majority_ratio": float("nan")}, "expected a finite number"),
        ({"majority_ratio": 1.5}, "a share from 0 to 1, got 1.5"),
        ({"undecided": -1}, "a whole number from 0 on"),
    ],
)
def test_a_vote_that_is_not_ours_is_refused(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(LINE | changed) + "\n")
    with pytest.raises(UserError, match=message):
        read_groups(path)


def test_a_line_ends_with_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    said = [{"text": "a\u2028b\x85c", "tokens": 1, "finish_reason": "stop"}]
    line = {"question": "q", "prompt": "p", "completions": said}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\r\n", encoding="utf-8")
    (group,) = read_groups(path)
    assert group.answers[0].text == "a\u2028b\x85c"
    path.write_text("")
    assert read_groups(path) == []


def test_answers_of_an_evaluation_are_read_as_they_were_written(tmp_path: Path) -> None:
    group = RecordedGroup(
        "q",
        "p \ud800",
        (RecordedAnswer("a", 1, False), RecordedAnswer("b", 2, True)),
        greedy=RecordedAnswer("c", 3, False),
        data="d.jsonl",
    )
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(recorded_line(group)) + "\n")
    assert read_groups(path) == [group]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\n", "codec can't decode"),
        (b'{"step": true}\n', "line 1: expected an object with a step"),
        (b'{"step": -1}\n', "line 1: expected an object with a step"),
        (b'{"step": 1}\n{"step": 2, "policy/loss": "low"}\n', "line 2: policy/loss = 'low': exp"),
        (b'{"step": 1, "policy/loss": null}\n', "policy/loss = None: expected a finite number"),
        (b'{"step": 1, "policy/loss": NaN}\n', "policy/loss = nan: expected a finite number"),
        (b'{"step": 1, "policy/loss": [1]}\n', r"policy/loss = \[1\]: expected a finite number"),
        (b'{"step": 1, "x": %s}\n' % (b"9" * 400), "x = 999"),
    ],
)
def test_figures_that_cannot_be_drawn_are_refused(folder: Path, line: bytes, message: str) -> None:
    (folder / "metrics.jsonl").write_bytes(line)
    with pytest.raises(UserError, match=rf"cannot read .*metrics\.jsonl: .*{message}"):
        read_run(folder)


@pytest.mark.parametrize(
    "content",
    [
        '{"steps": 2, "stop',
        "[]",
        "{}",
        '{"steps": "2", "stopped": null}',
        '{"steps": 2, "stopped": 5}',
        '{"steps": 2}',
        '{"steps": 2, "stopped": null, "wall_s": "long"}',
        '{"steps": 2, "stopped": null, "stream": []}',
    ],
)
def test_a_broken_summary_is_refused_with_what_to_do(folder: Path, content: str) -> None:
    """By whoever reads the run, and by whoever would go on with it."""
    (folder / "summary.json").write_text(content)
    message = (
        r"cannot read .*summary\.json: .*without it, --resume goes on from the last checkpoint"
    )
    with pytest.raises(UserError, match=message):
        read_run(folder)
    settings = load_settings("tiny-arithmetic", overrides=["seed=5", "max_steps=9"])
    with pytest.raises(UserError, match=message):
        changed_settings(RunFolder(folder), settings)
