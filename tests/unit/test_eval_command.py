"""``ttrl eval``: several data sets, recorded answers, earlier results, and each format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import call

from ttrl.report.results import EvaluationResult, load_results, results_json
from ttrl.report.rollouts import read_groups

FEW = ("--recipe", "tiny-arithmetic", "--set", "evaluation.samples=4", "--set", "threads=1")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Two sets: one with a row that cannot be used and one without an answer, and a small one."""
    rows = [{"prompt": "What is 12 + 34?", "answer": "46"}, {"prompt": "What is 1?"}, {"x": 1}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "r.jsonl").write_text('{"prompt": "What is 20 + 21?", "answer": "41"}\n')
    return [str(tmp_path / "q.jsonl"), str(tmp_path / "r.jsonl")]


def test_eval(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: list[str],
) -> None:
    samples, output, again = (tmp_path / name for name in ("s.jsonl", "a.json", "b.json"))
    code, out, _ = call(
        capsys, monkeypatch, "eval", "tiny-base", *data, *FEW, "--json", str(output),
        "--set", "data.max_rejected_share=0.5", "--save-samples", str(samples),
    )  # fmt: skip
    assert code == 0
    assert f"rejected {data[0]}:line 3: no field 'prompt'" in out.replace("\n", "")
    first, second = load_results(output)
    assert (first.data, second.data) == tuple(data)
    assert first.names[:6] == ["pass@1", "pass@2", "pass@4", "maj@2", "maj@4", "greedy"]
    assert [len(g.answers) for g in read_groups(samples)] == [4, 4]
    # The same answers, scored again without sampling, and with fewer of them drawn.
    code, out, _ = call(
        capsys, monkeypatch, "eval", "tiny-base", *data, *FEW, "--k", "2", "--json", str(again),
        "--set", "data.max_rejected_share=0.5", "--from-samples", str(samples),
        "--format", "markdown",
    )  # fmt: skip
    assert code == 0
    for was, now in zip((first, second), load_results(again), strict=True):
        assert now.names[:4] == ["pass@1", "pass@2", "maj@2", "greedy"]
        assert now.questions[0].scores == {n: was.questions[0].scores[n] for n in now.names}
    assert f"| pass@1 | {100 * first.mean('pass@1').value:.1f} |" in out


def test_results_measured_before_are_compared_without_sampling(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from results import result

    for name, value in (("base", 0.25), ("new", 0.5), ("third", 1.0)):
        measured = [result(name, [value, value], data) for data in ("x", "y")]
        (tmp_path / f"{name}.json").write_text(results_json(measured))
    read: list[str] = []

    def once(path: Path) -> list[EvaluationResult]:
        read.append(path.stem)
        return load_results(path)

    monkeypatch.setattr("ttrl.evaluation.measuring.load_results", once)
    base, new, third = (str(tmp_path / f"{name}.json") for name in ("base", "new", "third"))
    code, out, _ = call(
        capsys, monkeypatch, "eval", new, "y", "x", "--against", base, "--also", third,
        "--format", "latex",
    )  # fmt: skip
    assert code == 0
    assert r"pass@1 & 25.0 & 50.0 & +25.0 $\pm$ 0.0 & +100.0 \% \\" in out
    assert r"third & 100.0 (+75.0) & 100.0 (+75.0) \\" in out
    assert read == ["new", "base", "third"]
    code, out, _ = call(capsys, monkeypatch, "eval", new, "x", "--format", "json")
    (found,) = json.loads(out)["results"]
    assert found["means"]["pass@1"] == {"value": 0.5, "half_width": 0.0, "questions": 2}


def test_what_cannot_be_compared_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a file says is looked at before sampling; what is measured is written before tables."""
    from results import result

    (tmp_path / "r.jsonl").write_text('{"prompt": "What is 20 + 21?", "answer": "41"}\n')
    monkeypatch.chdir(tmp_path)
    other = result("base", [0.5], "r.jsonl")  # of a question with another id
    early = replace(result("fast", [0.5], "r.jsonl"), stopped_early="majority")
    for name, found in (("other", other), ("early", early), ("elsewhere", result("m", [1.0]))):
        (tmp_path / f"{name}.json").write_text(results_json([found]))

    def evaluate(*words: str) -> tuple[int, str]:
        code, _, err = call(capsys, monkeypatch, "eval", *words)
        return code, " ".join(err.split())

    for words in (
        ("tiny-base", "r.jsonl", *FEW, "--against", "early.json"),
        ("tiny-base", "r.jsonl", *FEW, "--also", "early.json"),
        ("early.json", "r.jsonl", "--against", "other.json"),
        ("early.json", "r.jsonl", "--also", "other.json"),
    ):
        code, err = evaluate(*words, "--json", "kept.json")
        assert code == 2
        assert "early.json: the results of fast on r.jsonl are of --stop-early" in err
        assert not Path("kept.json").exists()
    code, err = evaluate("tiny-base", "r.jsonl", *FEW, "--against", "elsewhere.json")
    assert code == 2 and "elsewhere.json has no result of r.jsonl" in err
    assert "on 1 questions" not in err
    code, err = evaluate(
        "tiny-base", "r.jsonl", *FEW, "--against", "other.json", "--json", "kept.json"
    )
    assert code == 2 and "were measured on different questions" in err
    assert [found.model for found in load_results(Path("kept.json"))] == ["base", "tiny-base"]


def test_a_base_is_sampled_however_the_model_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: list[str]
) -> None:
    """So it needs as many samples as --k asks for, which is seen before hours of sampling."""
    words = ("--from-samples", "s.jsonl", "--k", "8", "--against", "tiny-base")
    code, _, err = call(capsys, monkeypatch, "eval", "tiny-base", data[1], *FEW, *words)
    assert code == 2 and "--k 8: expected at most as many as answers, evaluation.samples = 4" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base.json", "x"), "cannot read results from base.json"),
        (("tiny-base", "x", "--also", "tiny-base", "--ranks", "2"), "measure each by itself"),
        (("tiny-base", "x", "--save-samples", "no/such/s.jsonl"), "--save-samples no/such"),
        (
            ("tiny-base", "x", "--save-samples", "n", "--json", "./n"),
            "--json and --save-samples both",
        ),
        (("tiny-base", "x", "--json", "/proc/n.json"), "no file can be written in /proc"),
        (("tiny-base", "arithmetic:train", "--from-samples", "s.jsonl"), "had another prompt"),
        (("tiny-base", "arithmetic:held_out", "--from-samples", "s.jsonl"), "no answers to"),
    ],
)
def test_what_cannot_be_measured(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = {"question": "train-1-0", "prompt": "eh?", "completions": []}
    (tmp_path / "s.jsonl").write_text(json.dumps(line) + "\n")
    code, out, err = call(capsys, monkeypatch, "eval", *arguments)
    assert code == 2
    assert message in err
    assert out == ""


SAID = {"text": r"\boxed{61}", "tokens": 4, "finish_reason": "stop"}
FIRST = {"question": "held_out-1-0", "prompt": "What is 47 + 14?\nAnswer:\n"}
SECOND = {"question": "held_out-1-1", "prompt": "What is 49 + 13?\nAnswer:\n"}
OF_AGENTS = SAID | {"turn": 0, "agent": 0, "trajectory": 0, "role": "x"}
LATER = SAID | {"turn": 1, "agent": 0, "trajectory": 0, "role": "x", "asked": "a", "prompt": "p"}


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            [FIRST | {"completions": [SAID]}] * 2,
            (),
            "line 2: question 'held_out-1-0' is there twice",
        ),
        (
            [FIRST | {"completions": []}],
            (),
            "nobody has answered question 'held_out-1-0' by itself",
        ),
        ([FIRST | {"completions": [LATER]}], (), "nobody has answered question"),
        (
            [FIRST | {"completions": [SAID]}],
            ("--k", "2"),
            "--k 2: expected at most as many as there are answers to every question, and to one "
            "s.jsonl has 1; lower --k",
        ),
        ([FIRST | {"completions": [SAID]}], ("--k", "0"), "--k 0: expected 1 or more"),
        (
            [FIRST | {"completions": [SAID], "greedy": SAID}, SECOND | {"completions": [SAID]}],
            (),
            "question 'held_out-1-0' has a greedy answer, and 'held_out-1-1' has not",
        ),
        (
            [FIRST | {"completions": [SAID]}, SECOND | {"completions": [OF_AGENTS]}],
            (),
            "question 'held_out-1-1' has answers of agents in turns, and 'held_out-1-0' has not",
        ),
    ],
)
def test_answers_that_cannot_be_scored_are_refused(
    lines: list[dict[str, object]],
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("tiny-base", "arithmetic:held_out", "--recipe", "tiny-arithmetic")
    words += ("--from-samples", "s.jsonl")
    code, _, err = call(capsys, monkeypatch, "eval", *words, *options)
    assert (code, message in err) == (2, True), err


def test_answers_of_two_questions_are_scored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line | {"completions": [SAID, SAID]} for line in (FIRST, SECOND)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        "tiny-base",
        "arithmetic:held_out",
        "--recipe",
        "tiny-self-posed",
    )  # no recipe of lists
    words += ("--from-samples", "s.jsonl", "--format", "json")
    code, out, err = call(capsys, monkeypatch, "eval", *words)
    assert code == 0, err
    (found,) = json.loads(out)["results"]
    assert found["means"]["pass@1"]["value"] == 0.5


def test_an_interrupt_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ttrl.commands.evaluate.Asking.measure", interrupted)
    code, _, err = call(capsys, monkeypatch, "eval", "tiny-base", "arithmetic:train")
    assert (code, err) == (130, "ttrl: interrupted; nothing was written\n")
