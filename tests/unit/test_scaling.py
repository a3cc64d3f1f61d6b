"""Scaling curves: choices by hand and against all subsets, budgets, the command and its plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import call

from ttrl.answers import default_grader, extract_answer
from ttrl.commands.scale import JUDGED, SHIPPED
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.report.scaling_plot import Curve, scaling_page, scaling_svg
from ttrl.report.tables import TextTable
from ttrl.scaling import METHODS, Factors, Measuring, Point, best_within
from ttrl.scaling.choices import REWARD, best_of, weighted
from ttrl.scaling.conversations import SHAPES
from ttrl.scaling.points import budgets_of
from ttrl.selection.candidates import Candidates
from ttrl.selection.rules import RULES
from ttrl.settings import SelectionSettings
from ttrl.settings.rollout import IN_TURNS

SCORES = [0.9, 0.2, 0.7, 0.7, 0.1]
ANSWERS = ["8", "7", None, "7.0", "8"]
FREE = Factors(read=0.0, trained=0.0)


def candidates(
    scores: Sequence[float], answers: Sequence[str | None], reference: str = "7"
) -> Candidates:
    texts = ("?" if a is None else rf"\boxed{{{a}}}" for a in answers)
    recorded = tuple(RecordedAnswer(text, 10, False) for text in texts)
    group = RecordedGroup("q", "p", recorded)
    found = Candidates.of(group, reference, extract_answer, default_grader())
    return found.scored(REWARD, np.array(scores))


def chosen(rule: str, found: Candidates, places: Sequence[int]) -> float:
    """Whether ``ttrl eval --select`` is right with these answers."""
    choose, some = RULES[rule].choose, list(places)
    assert choose is not None
    classes, scores = found.class_N[some], found.scores_N[REWARD][some]
    return float(found.right(choose(classes[None], scores[None], SelectionSettings()))[0])


TIED = ([0.5, 0.5, 0.5, 0.5, 0.2], ["8", "7", None, "9", "7"])
"""The answers with 0.5 that eval ranks 7, 8, 9; sampled first was 8."""


@pytest.mark.parametrize("given", [(SCORES, ANSWERS), TIED, ([0.5] * 5, ["9", "8", "7", "8", "9"])])
@pytest.mark.parametrize("reference", ["7", "8", "9"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_best_of_n_is_that_of_all_subsets_by_the_rule_of_eval(
    given: tuple[list[float], list[str | None]], reference: str, n: int
) -> None:
    found = candidates(*given, reference)
    every = [chosen("best-of-n", found, places) for places in combinations(range(5), n)]
    assert best_of(found, n) == pytest.approx(fmean(every))


def test_of_equal_scores_the_first_sample_is_not_the_better_one() -> None:
    assert best_of(candidates(*TIED), 5) == 1.0
    assert best_of(candidates(*TIED, reference="8"), 5) == 0.0
    # Of two: 7 is the best of each pair with 8, 9 or no answer, in three of ten; the other 7, with
    # 0.2, where it comes with the first or with no answer.
    assert best_of(candidates(*TIED), 2) == pytest.approx((4 + 1) / 10)


def test_a_weighted_vote_by_hand() -> None:
    """8 weighs 0.9 + 0.1, and 7 weighs 0.2 + 0.7. Of equal weights 1 wins, as in a tied vote."""
    settings = SelectionSettings()
    assert weighted(candidates(SCORES, ANSWERS, "8"), 5, settings) == 1.0
    assert weighted(candidates([0.9, 0.3, 0.7, 0.8, 0.1], ANSWERS), 5, settings) == 1.0
    assert weighted(candidates([0.5, 0.25, 0.25], ["1", "2", "2"], "1"), 3, settings) == 1.0
    assert weighted(candidates([0.5], [None]), 1, settings) == 0.0
    # Of two: (8, 7) elects 8, (None, 7) elects 7; the fifth answer is left over.
    assert weighted(candidates(SCORES, ANSWERS), 2, settings) == 0.5
    for choose in (best_of, partial(weighted, settings=settings)):
        with pytest.raises(ValueError, match="6 of 5"):
            choose(candidates(SCORES, ANSWERS), 6)


def points() -> list[Point]:
    return [
        Point("a", 1, (0.0, 1.0), 10.0),
        Point("a", 2, (1.0, 1.0), 20.0),
        Point("a", 4, (1.0, 1.0), 40.0),
        Point("b", 1, (1.0, 0.0), 8.0, read=16.0, trained=1.0),
    ]


def test_what_is_best_within_a_budget() -> None:
    assert points()[3].cost(Factors()) == 8 + 16 + 3
    assert [(p.method, p.n) for p in best_within(points(), 40, Factors())] == [("a", 2), ("b", 1)]
    assert [(p.method, p.n) for p in best_within(points(), 10, FREE)] == [("b", 1), ("a", 1)]
    assert best_within(points(), 5, FREE) == []
    assert budgets_of(points(), FREE) == [8.0, 16.0, 32.0, 64.0]


def test_the_command_knows_the_methods() -> None:
    assert tuple(METHODS) == SHIPPED
    assert set(JUDGED) == set(SHIPPED) - {"majority", "training", *IN_TURNS}
    assert tuple(SHAPES) == IN_TURNS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "bean"), "'bean' is unknown (did you mean 'beam'?)"),
        (("--methods", "beam"), "beam asks a reward model, and none is named"),
        (("--reward-model", "tiny-prm"), "would be ignored: none of 'majority' asks one"),
        (("--methods", "training"), "add --run-dir FOLDER"),
        (("--methods", "beam", "--reward-model", "tiny-pmr"), "(did you mean 'tiny-prm'?)"),
        (("--methods", "dvts", "--reward-model", "tiny-prm", "--n", "6"), "multiple of --width 4"),
        (("--methods", "chain", "--n", "4"), "a chain 3x1 has 3 answers in all turns"),
        (("--n", "0"), "--n 0: expected 1 or more"),
        (("--plot", "x.png"), "expected a file that ends with .svg or .html"),
        (("--plot", "x.svg", "--json", "x.svg"), "--json and --plot both name x.svg"),
        (("--budget", "nan"), "--budget nan: expected a number of tokens above 0"),
        (("--budget", "inf"), "--budget inf: expected"),
        (("--budget", "-5"), "--budget -5: expected"),
        (("--width", "2"), "--width 2 would be ignored: add beam or dvts to --methods"),
        (("--read-factor", "2"), "--read-factor 2 would be ignored: add best-of-n or"),
        (("--update-factor", "2"), "--update-factor 2 would be ignored: add training"),
        (("--update-factor", "inf"), "--update-factor inf: expected a finite number"),
    ],
)
def test_what_cannot_work_is_refused(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, err = call(capsys, monkeypatch, "scale", "tiny-base", "arithmetic:train", *words)
    assert code == 2 and said in err


def test_all_methods_on_a_few_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = ((47, 85), (31, 29))
    rows = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in pairs]
    data = tmp_path / "q.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["--methods", ",".join(SHIPPED), "--reward-model", "tiny-prm"]
    words += ["--recipe", "tiny-arithmetic", "--budget", "1000"]
    words += ["--n", "1", "--n", "4", "--n", "12"]
    words += ["--set", "rollout.questions_per_step=2", "--set", "rollout.votes=4"]
    words += ["--set", "policy.trained_samples=4", "--set", "policy.sequences_per_update=8"]
    words += ["--set", "max_steps=1", "--run-dir", str(tmp_path / "run")]
    words += ["--json", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.html")]
    code, out, err = call(capsys, monkeypatch, "scale", "tiny-base", str(data), *words)
    assert code == 0, err
    found = json.loads((tmp_path / "s.json").read_text())
    by = {(p["method"], p["n"]): p for p in found["points"]}
    assert set(by) == {
        *((m, n) for m in ("majority", "best-of-n", "weighted") for n in (1, 4, 12)),
        *((m, n) for m in ("beam", "dvts", "debate 2x2", "mixture 3+1") for n in (4, 12)),
        ("chain 3x1", 12),
        *((m, n) for m in ("training", "training, majority") for n in (0, 1)),
    }
    one, four = by["majority", 1], by["majority", 4]
    assert four["sampled"] == pytest.approx(4 * one["sampled"]) and four["read"] == 0
    assert by["best-of-n", 4]["read"] == pytest.approx(four["sampled"])
    assert by["beam", 4]["read"] > 0 and by["dvts", 4]["read"] > 0
    assert by["debate 2x2", 12]["read"] == pytest.approx(3 * by["debate 2x2", 4]["read"])
    trained = by["training", 1]
    answer = by["training", 0]["sampled"]
    assert trained["sampled"] > 4 * 10 and answer < trained["sampled"]
    assert trained["cost"] == pytest.approx(trained["sampled"] + 3 * trained["trained"])
    assert found["budgets"]["1000"] and "Best within a budget" in out
    assert (tmp_path / "s.html").read_text().count("<svg") == 1
    assert "beam and dvts leave out n = 1: no multiple of --width 4" in out
    # With other settings, nothing is sampled.
    monkeypatch.setattr("ttrl.evaluation.evaluation.Evaluation.sample", pytest.fail)
    words = [word for word in words if not word.startswith(str(tmp_path / "s."))]
    words = [word for word in words if word not in ("--json", "--plot")]
    code, _, err = call(
        capsys, monkeypatch, "scale", "tiny-base", str(data), *words, "--set", "max_steps=2"
    )
    assert (
        code == 2 and "begun with other settings; nothing was changed: max_steps = 2 (was 1)" in err
    )
    # The same command measures nothing again, and finds the same.
    monkeypatch.setattr("ttrl.commands.scale._pool", pytest.fail)
    again = ("--json", str(tmp_path / "again.json"))
    code, _, err = call(capsys, monkeypatch, "scale", "tiny-base", str(data), *words, *again)
    assert code == 0, err
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_a_run_that_cannot_begin_is_refused_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttrl.evaluation.evaluation.Evaluation.sample", pytest.fail)
    data = tmp_path / "q.jsonl"
    data.write_text('{"prompt": "What is 1 + 2?", "answer": "3"}\n')
    words = ("--recipe", "tiny-arithmetic", "--methods", "majority,training", "--n", "2")
    words += ("--run-dir", str(tmp_path / "run"))
    code, _, err = call(capsys, monkeypatch, "scale", "tiny-base", str(data), *words)
    assert code == 2 and "questions_per_step = 16, but" in err and "has 1 questions" in err
    assert not (tmp_path / "run").exists()


def test_agents_do_not_change_what_single_answers_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "q.jsonl"
    data.write_text('{"prompt": "What is 47 + 85?", "answer": "132"}\n')
    found = []
    for recipe in ("tiny-arithmetic", "tiny-agents"):
        words = ("--recipe", recipe, "--n", "8", "--format", "json")
        code, out, err = call(capsys, monkeypatch, "scale", "tiny-base", str(data), *words)
        assert code == 0, err
        (point,) = json.loads(out)["points"]
        found.append((point["accuracy"], point["sampled"]))
    assert found[0] == found[1]


def test_an_interrupt_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(on: Measuring) -> Iterator[Point]:
        yield Point("majority", 1, (1.0,), 10.0)
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "majority", interrupted)
    words = ("scale", "tiny-base", "arithmetic:train")
    code, _, err = call(capsys, monkeypatch, *words)
    nothing = "ttrl: interrupted; --json and --plot were not written\n"
    assert (code, err) == (130, nothing)
    run = tmp_path / "run"
    code, _, err = call(capsys, monkeypatch, *words, "--run-dir", str(run))
    said = f"ttrl: what was measured is in {run}, and the same command goes on\n"
    assert (code, err) == (130, said + nothing)


def test_a_plot_is_of_shapes_and_text() -> None:
    curves = [Curve("a <b>", ((10.0, 0.5, 0.4, 0.6), (100.0, 0.7, 0.6, 0.8)))]
    svg = scaling_svg(curves, "title & more", "tokens")
    words = [e.text for e in ElementTree.fromstring(svg).iter() if e.text]
    assert {"a <b>", "title & more", "tokens", "accuracy"} <= set(words)
    page = scaling_page(svg, [TextTable("<t>", ("m", "n"), (("<i>", "1"),))], "x < y")
    assert "<td>&lt;i&gt;</td>" in page and "<script" not in page and "http://www.w3" in page


def test_training_comes_when_the_untrained_engine_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run has one of its own, and a process holds no two of vLLM; a GPU's memory hardly two."""
    found: list[str] = []

    class Pool:
        def close(self) -> None:
            found.append("closed")

    def method(name: str) -> Callable[[Measuring], Iterator[Point]]:
        def measure(on: Measuring) -> Iterator[Point]:
            found.append(name)
            if name == "majority":
                assert on.pool
            yield Point(name, 1, (1.0,), 10.0)

        return measure

    for name in ("majority", "training"):
        monkeypatch.setitem(METHODS, name, method(name))
    monkeypatch.setattr("ttrl.rollout.pool.make_pool", lambda *given: Pool())
    output = tmp_path / "points.json"
    options = ("--methods", "training,majority", "--run-dir", str(tmp_path / "run"))
    words = ("scale", "tiny-base", "arithmetic:train", *options, "--json", str(output))
    assert call(capsys, monkeypatch, *words)[0] == 0
    assert found == ["majority", "closed", "training"]
    methods = [point["method"] for point in json.loads(output.read_text())["points"]]
    assert methods == ["majority", "training"]
