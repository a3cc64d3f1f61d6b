"""What `ttrl scale` has measured is in its folder at once: nothing is lost, nor made again."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from runs import make_run

from ttrl.evaluation.evaluation import Evaluation
from ttrl.scaling import METHODS, Measuring, Point
from ttrl.search import steps as search_steps

PAIRS = ((47, 85), (31, 29), (659, 747))
MODEL = """
from pathlib import Path

def longest(prompt, solution):
    if "31" in prompt and Path("broken").exists():
        raise RuntimeError("the judge is out")
    return min(1.0, len(solution) / 1000)
"""
Scale = Callable[..., tuple[int, str]]


@pytest.fixture
def scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Scale:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"{a}", "prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in PAIRS]
    Path("q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("judge.py").write_text(MODEL)

    def run(*words: str) -> tuple[int, str]:
        base = (
            "scale",
            "tiny-base",
            "q.jsonl",
            "--recipe",
            "tiny-arithmetic",
            "--set",
            "threads=1",
        )
        judge = ("--reward-model", "judge.py:longest")
        code, out, err = call(capsys, monkeypatch, *base, *judge, *words)
        return code, " ".join((out + err).split())

    return run


CHOICES = ("--methods", "majority,best-of-n,weighted", "--n", "2", "--n", "6")


def points(path: str) -> list[Any]:
    """All but the seconds."""
    found = json.loads(Path(path).read_text())["points"]
    return [{k: v for k, v in point.items() if k != "seconds"} for point in found]


def lines(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that answers were sampled to."""
    found: list[str] = []
    sample = Evaluation.sample

    def noted(self: Evaluation, *given: Any) -> Any:
        found.extend(q.id for q in self.answerable)
        return sample(self, *given)

    monkeypatch.setattr(Evaluation, "sample", noted)
    return found


def test_a_reward_model_that_fails_midway_loses_nothing(scale: Scale, asked: list[str]) -> None:
    assert scale(*CHOICES, "--json", "whole.json")[0] == 0
    asked.clear()
    Path("broken").touch()
    code, said = scale(*CHOICES, "--run-dir", "kept")
    assert code != 0 and "the judge is out" in said
    assert "what was measured is in kept, and the same command goes on" in said
    assert asked == ["47", "31", "659"]
    assert {line["question"] for line in lines("kept/answers.jsonl")} == {"47", "31", "659"}
    assert [line["question"] for line in lines("kept/scores.jsonl")] == ["47"]
    asked.clear()
    Path("broken").unlink()
    code, said = scale(*CHOICES, "--run-dir", "kept", "--json", "again.json")
    assert code == 0, said
    assert asked == [] and points("again.json") == points("whole.json")
    # Another method has the same answers.
    code, said = scale("--methods", "weighted,majority", *CHOICES[2:], "--run-dir", "kept")
    assert code == 0 and asked == []
    assert scale("--methods", "beam", "--width", "2", *CHOICES[2:], "--run-dir", "kept")[0] == 0


def test_a_process_killed_while_it_samples_or_scores_goes_on(
    scale: Scale, asked: list[str]
) -> None:
    """Half a line is what a killed process leaves: the question is asked again, and no other."""
    assert scale(*CHOICES, "--run-dir", "kept", "--json", "whole.json")[0] == 0
    asked.clear()
    for name in ("answers", "scores"):
        path = Path(f"kept/{name}.jsonl")
        first, second, third = path.read_text().splitlines(keepends=True)
        path.write_text(first + second + third[: len(third) // 2])
    for path in Path("kept/points").iterdir():
        path.unlink()
    (lost,) = {"47", "31", "659"} - {json.loads(line)["question"] for line in _whole("answers")}
    code, said = scale(*CHOICES, "--run-dir", "kept", "--json", "again.json")
    assert code == 0, said
    assert asked == [lost]
    assert points("again.json") == points("whole.json")


def _whole(name: str) -> list[str]:
    return Path(f"kept/{name}.jsonl").read_text().split("\n")[:-1]


def test_answers_are_kept_one_by_one(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Evaluation.sample

    def killed(self: Evaluation, pool: Any, step: int, display: Any, on_group: Any) -> Any:
        def once(group: Any) -> None:
            on_group(group)
            raise KeyboardInterrupt

        return sample(self, pool, step, display, once)

    monkeypatch.setattr(Evaluation, "sample", killed)
    code, said = scale(*CHOICES, "--run-dir", "kept")
    assert code == 130 and "what was measured is in kept, and the same" in said
    assert len(lines("kept/answers.jsonl")) == 1


def test_a_search_goes_on_with_the_numbers_that_it_lacks(
    scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--methods", "beam", "--n", "2", "--n", "4", "--width", "2")
    assert scale(*words, "--json", "whole.json")[0] == 0
    searched: list[int] = []

    def search(kind: str, pool: Any, model: Any, questions: Any, params: Any) -> Any:
        searched.append(params.n)
        if params.n == 4 and searched.count(4) == 1:
            raise KeyboardInterrupt
        return search_steps.search(kind, pool, model, questions, params)

    monkeypatch.setattr("ttrl.scaling.methods.search", search)
    assert scale(*words, "--run-dir", "kept")[0] == 130
    assert scale(*words, "--run-dir", "kept", "--json", "again.json")[0] == 0
    assert searched == [2, 4, 4]
    assert points("again.json") == points("whole.json")


def instead_of_measuring(on: Measuring) -> Iterator[Point]:
    yield from (Point("majority", n, (1.0,), 10.0 * n) for n in on.counts)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "seed=1"), "begun with other settings; nothing was changed: seed = 1 (was 0)"),
        (("--n", "8"), "evaluation.samples = 8 (was 6)"),
        (("--n", "3"), "has best-of-n of {'n': [2, 6], 'reward_model': 'judge.py:longest'}"),
        (("--reward-model", "tiny-prm"), "the reward model 'judge.py:longest', and not of 'tiny-"),
    ],
)
def test_what_was_measured_in_another_way_is_not_mixed(
    words: tuple[str, ...], said: str, scale: Scale
) -> None:
    assert scale("--methods", "best-of-n", *CHOICES[2:], "--run-dir", "kept")[0] == 0
    before = {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()}
    code, found = scale("--methods", "best-of-n", *CHOICES[2:], "--run-dir", "kept", *words)
    assert code == 2 and said in found and "nothing was changed" in found
    assert before == {p: p.read_bytes() for p in Path("kept").rglob("*") if p.is_file()}


def test_other_questions_of_the_same_name_are_refused(scale: Scale) -> None:
    assert scale(*CHOICES, "--run-dir", "kept")[0] == 0
    Path("q.jsonl").write_text('{"id": "47", "prompt": "What is 1 + 2?", "answer": "3"}\n')
    code, said = scale(*CHOICES, "--run-dir", "kept")
    assert (
        code == 2
        and "kept was begun with other questions, or other answers to them, in q.jsonl" in said
    )


def test_a_folder_of_something_else_is_refused(
    scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "best-of-n", instead_of_measuring)
    words = ("--methods", "best-of-n", "--n", "2", "--run-dir")
    Path("other").mkdir()
    Path("other/mine.txt").touch()
    code, said = scale(*words, "other")
    assert code == 2 and "no folder of `ttrl scale`: it has no recipe.toml" in said
    code, said = scale(*words, "q.jsonl")
    assert code == 2 and "no folder of `ttrl scale`" in said
    make_run(Path("run"), [])
    code, said = scale(*words, "run")
    assert code == 2 and "run is the folder of a run: name one for the measurement" in said
    Path("empty").mkdir()
    assert scale(*words, "empty")[0] == 0
    Path("empty/points/best-of-n.json").write_text("[]")
    code, said = scale(*words, "empty")
    assert code == 2 and "best-of-n.json is not one of ours" in said
    with Path("empty/recipe.toml").open("rb") as claimed:
        fcntl.flock(claimed, fcntl.LOCK_SH)
        code, said = scale(*words, "empty")
    assert code == 2 and "another process is measuring in it" in said


def test_a_folder_in_which_nothing_was_measured_binds_nobody(scale: Scale) -> None:
    """The reward model cannot be loaded, or is the wrong one: the settings may be put right."""
    words = ("--methods", "best-of-n", "--n", "2", "--run-dir", "kept", "--set")
    code, said = scale(*words, "seed=1", "--reward-model", "judge.py:nobody")
    assert code == 2 and "what was measured" not in said and Path("kept").exists()
    code, said = scale(*words, "seed=2")
    assert code == 0, said
    assert "seed = 2" in Path("kept/recipe.toml").read_text()
    assert "seed = 1" not in Path("kept/recipe.toml").read_text()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "answers",
            {"completions": []},
            "has 0 answers, and evaluation.samples = 6",
        ),
        ("answers", {"prompt": "What is 2?"}, "question '47' had another prompt"),
        ("answers", {"completions": 3}, "answers.jsonl, line 1: ValueError: completions: expected"),
        ("answers", {"seconds": "long"}, "answers.jsonl: a line is not one of ours"),
        ("scores", {"scores": [0.5]}, "expected 6 numbers for question '47': take its line out"),
        ("scores", {"scores": [0.5, 0.5, 0.5, 0.5, 0.5, None]}, "expected 6 numbers for question"),
        ("scores", {"scores": None}, "expected 6 numbers for question '47'"),
        ("scores", {"question": ["47"]}, "scores.jsonl: a line is not one of ours"),
        ("scores", {"model": ["judge.py"]}, "scores.jsonl: a line is not one of ours"),
    ],
)
def test_what_somebody_has_changed_is_refused_and_not_scored(
    name: str, change: dict[str, Any], said: str, scale: Scale
) -> None:
    words = (*CHOICES, "--run-dir", "kept")
    assert scale(*words)[0] == 0
    path = Path(f"kept/{name}.jsonl")
    rows = sorted(lines(str(path)), key=lambda row: str(row["question"]) != "47")
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [rows[0] | change, *rows[1:]]))
    Path("kept/points/best-of-n.json").unlink()
    code, found = scale(*words)
    assert code == 2 and said in found


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [1.0]},
        {"scores": [1.0, 1.0, "1"]},
        {"scores": [1.0, 1.0, float("nan")]},
        {"sampled": "many"},
        {"n": 2.5},
        {"method": "majority"},
    ],
)
def test_points_that_somebody_has_changed_are_refused(
    change: dict[str, Any], scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "best-of-n", three_right)
    words = ("--methods", "best-of-n", "--n", "2", "--run-dir", "kept")
    assert scale(*words)[0] == 0 and scale(*words)[0] == 0
    path = Path("kept/points/best-of-n.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"points": [found["points"][0] | change]}))
    code, said = scale(*words)
    assert code == 2 and "best-of-n.json is not one of ours" in said


def three_right(on: Measuring) -> Iterator[Point]:
    yield from (Point("best-of-n", n, (1.0, 1.0, 1.0), 10.0 * n) for n in on.counts)


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("recipe.toml", "open"),
        ("points", "mkdir"),
        ("questions.json.tmp", "write_bytes"),
        ("questions.json.tmp", "rename"),
    ],
)
def test_a_process_that_is_killed_while_it_makes_the_folder_goes_on(
    name: str, action: str, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "best-of-n", three_right)
    words = ("--methods", "best-of-n", "--n", "2", "--run-dir", "kept")
    with monkeypatch.context() as patched:
        patched.setattr(Path, action, killed_at(name, getattr(Path, action)))
        assert scale(*words)[0] == 130
    code, said = scale(*words)
    assert code == 0, said


def killed_at(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
    def act(self: Path, *given: Any, **options: Any) -> Any:
        if self.name == name and self.parent.name == "kept":
            raise KeyboardInterrupt
        return action(self, *given, **options)

    return act


@pytest.mark.parametrize("folder", ["q.jsonl/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made_is_refused_at_once(
    folder: str, scale: Scale, asked: list[str]
) -> None:
    code, found = scale(*CHOICES, "--run-dir", folder)
    assert code == 2 and f"--run-dir {folder}: " in found and "name another folder" in found
    assert asked == []
