"""``ttrl runs``, ``show`` and ``compare`` on runs of known figures; curves in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from runs import make_run

from ttrl.report.curves import curve_line, sparkline


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1, 3, 2, 2], 2) == "▁▁"  # means of parts: 2 and 2
    assert sparkline([5.0], 10) == "▁"
    assert sparkline([], 10) == ""


def test_a_curve_fits_a_line() -> None:
    points = [(step, step / 100) for step in range(1, 101)]
    line = curve_line("vote/majority_ratio", points, 80)
    assert line.startswith("vote/majority_ratio           ▁")
    assert line.endswith("█ 0.01 → 1")
    assert len(line) == 80


STEPS = [{"vote/majority_ratio": 0.25}, {"vote/majority_ratio": 0.75, "policy/entropy": 0.5}]
SUMMARY = {"steps": 2, "stopped": None, "wall_s": 130.0}


def test_runs_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(
        tmp_path / "a",
        STEPS,
        {0: {"train": [0.25, 0.5]}, 2: {"train": [0.75, 1.0]}},
        summary=SUMMARY,
    )
    make_run(tmp_path / "b", [])
    line = {"stream/scored": 9, "vote/majority_ratio": 0.5}
    for name in ("first", "majority"):
        line |= {f"stream/{name}_accuracy_mean": 0.5, f"stream/{name}_accuracy_last_third": 0.75}
    make_run(tmp_path / "s", [line], recipe="tiny-stream")
    (tmp_path / "c").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.toml").write_text("name = 3")
    code, out, _ = call(capsys, monkeypatch, "runs", str(tmp_path), "--format", "json")
    assert code == 0
    (table,) = json.loads(out)
    assert table["rows"][:2] == [
        ["a", "finished", "2", "2 min", "better", "37.5 → 87.5", ""],
        ["b", "unfinished", "0", "", "not measured", "", ""],
    ]
    assert table["rows"][2][:2] == ["d", "unreadable"]
    assert table["rows"][3][4:6] == ["nothing learned", "50.0, last third 75.0"]
    code, _, err = call(capsys, monkeypatch, "runs", str(tmp_path / "c"))
    assert code == 2 and "holds no run" in err


def test_two_runs_are_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {"train": [0.0, 0.0]}
    make_run(tmp_path / "a", STEPS, {0: before, 2: {"train": [0.25, 0.5]}})
    make_run(
        tmp_path / "b",
        STEPS[:1],
        {0: before, 1: {"train": [0.5, 1.0]}},
        ["seed=3", "loss.kl_coef=0.5"],
    )
    names = (str(tmp_path / "a"), str(tmp_path / "b"))
    code, out, _ = call(capsys, monkeypatch, "compare", *names, "--format", "json")
    assert code == 0
    settings, scores, figures = json.loads(out)
    assert sorted(settings["rows"]) == [["loss.kl_coef", "0.0", "0.5"], ["seed", "0", "3"]]
    # gains 0.25 and 0.5: deviation 0.177, so 1.96 * 0.125
    assert scores["rows"] == [["pass@1", "37.5", "75.0", "+37.5 ± 24.5", "+100.0 %"]]
    assert figures["rows"] == [
        ["vote/majority_ratio", "0.75", "0.25"],
        ["policy/entropy", "0.5", ""],
    ]


def line(question: str, label: str, ratio: float, *answers: str) -> dict[str, object]:
    said = [
        {
            "text": f"it is {a}\x1b[31m",
            "answer": a,
            "reward": 0,
            "tokens": 4,
            "finish_reason": "stop",
        }
        for a in answers
    ]
    return {
        "question": question,
        "prompt": f"What of {question}?",
        "label": label,
        "majority_ratio": ratio,
        "completions": said,
    }


def test_wrong_majorities_are_shown_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"id": q, "prompt": "p", "answer": a} for q, a in (("x", "1"), ("y", "2"), ("z", "3"))]
    data = tmp_path / "q.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    make_run(run, STEPS, overrides=[f"data.train={data}", "data.held_out=none"])
    (run / "rollouts").mkdir()
    lines = [
        line("x", "1.0", 0.5, "1.0", "2"),  # right: 1.0 is 1
        line("y", "7", 0.6, "7", "7", "2"),  # wrong
        line("z", "9", 0.9, "9", "9", "9", "3"),  # wrong, and more convinced
    ]
    (run / "rollouts" / "step_00002.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    code, out, _ = call(capsys, monkeypatch, "show", str(run))
    assert code == 0
    assert out.splitlines()[0] == f"{run}: unfinished after 2 steps"
    assert "vote/majority_ratio           ▁█ 0.25 → 0.75" in out
    places = [out.index(f"What of {q}?") for q in "zyx"]
    assert places == sorted(places)
    assert "majority '9' with 90% of the votes, reference '3'" in out
    assert "3 said '9' (4 tokens, complete):\n    'it is 9\\x1b[31m'" in out
    assert "\x1b" not in out  # a terminal would obey it
    code, out, _ = call(capsys, monkeypatch, "show", str(run), "--questions", "1", "--answers", "1")
    assert "1 of 3 questions" in out and "'3' (4" not in out
    code, _, err = call(capsys, monkeypatch, "show", str(run), "--step", "1")
    assert code == 2 and "has the answers of steps 2 to 2" in err


def test_verdicts_are_shown_as_such(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are no answers: one who said neither 1 nor 0 has judged, and has not said None."""
    run = make_run(tmp_path / "run", STEPS, overrides=["data.train=q.jsonl"])
    (run.path / "rollouts").mkdir()
    verdicts = (True, True, True, False, False, None)
    shown: dict[str, Any] = {**line("x", "9", 0.5, *"8888887")}
    for said, verdict in zip(shown["completions"][:6], verdicts, strict=True):
        said |= {"answer": None, "verdict": verdict, "verdict_of": 6}
    (run.path / "rollouts" / "step_00002.jsonl").write_text(json.dumps(shown) + "\n")
    code, out, _ = call(capsys, monkeypatch, "show", str(run.path), "--answers", "9")
    assert code == 0
    heads = [words.partition(" (")[0].strip() for words in out.splitlines() if "complete" in words]
    judged = [f"{n} judged a solution: {kind}" for n, kind in ((3, "right"), (2, "wrong"))]
    assert heads == [*judged, "1 said '7'", "1 judged a solution: neither right nor wrong"]


def test_a_run_whose_measurements_are_broken_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in "ab":
        make_run(
            tmp_path / name, STEPS, {0: {"train": [0.5]}}, summary={"steps": 2, "stopped": None}
        )
    (tmp_path / "a" / "evaluations" / "step_00000.json").write_text('{"format"')
    make_run(tmp_path / "c", [])
    (tmp_path / "c" / "metrics.jsonl").unlink()
    (tmp_path / "c" / "metrics.jsonl").mkdir()
    code, out, _ = call(capsys, monkeypatch, "runs", str(tmp_path), "--format", "json")
    assert code == 0
    rows = json.loads(out)[0]["rows"]
    assert [row[:3] for row in rows] == [
        ["a", "unreadable", ""],
        ["b", "finished", "2"],
        ["c", "unreadable", ""],
    ]
    assert "cannot read results from" in rows[0][4] and "metrics.jsonl" in rows[2][4]


def test_names_that_control_a_terminal_are_shown_by_their_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A question is called as its file says, an agent as its workflow says."""
    run = make_run(tmp_path / "run", STEPS, overrides=["data.train=q.jsonl"])
    other = make_run(tmp_path / "other", STEPS, overrides=["data.suffix=\x1b[2J"])
    (run.path / "rollouts").mkdir()
    shown: dict[str, Any] = {**line("x", "9", 0.5, "9")}
    shown["question"] = "q\x1b[2J\u202e1"
    shown["completions"][0] |= {"turn": 1, "agent": 0, "trajectory": 0, "role": "judge\x07"}
    (run.path / "rollouts" / "step_00002.jsonl").write_text(json.dumps(shown) + "\n")
    _, out, _ = call(capsys, monkeypatch, "show", str(run.path))
    assert "\nqU+001B[2JU+202E1: " in out
    assert "complete, by judgeU+0007 1 in turn 2):" in out
    _, compared, _ = call(capsys, monkeypatch, "compare", str(run.path), str(other.path))
    assert "U+001B[2J" in "".join(compared.split())
    assert not set("\x1b\x07\u202e") & set(out + compared)
