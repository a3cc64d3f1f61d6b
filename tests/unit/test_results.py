"""Means, intervals and gains of an evaluation, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from results import result

from ttrl.report.results import load_results, mean_of, results_json
from ttrl.types import UserError


def test_the_interval_of_a_mean_over_questions() -> None:
    # mean 3/4; the sample's variance is (9/16 + 3/16) / 3 = 1/4, so the error is 1/2 / sqrt(4)
    found = mean_of([0, 1, 1, 1])
    assert found.value == 0.75
    assert found.half_width == pytest.approx(1.959964 / 4)
    assert found.questions == 4
    assert mean_of([0.5]).half_width is None
    assert mean_of([1.0, 1.0]).half_width == 0
    with pytest.raises(ValueError, match="no questions"):
        mean_of([])


def test_more_answers_to_the_same_questions_do_not_make_a_question() -> None:
    """The error is that of questions: 16 equal answers to each of 4 are 4 facts, not 64."""
    once = result("m", [0, 1, 1, 1])
    assert once.mean("pass@1").half_width == pytest.approx(1.96 * 0.25, rel=1e-3)
    as_if_independent = 1.96 * math.sqrt(0.75 * 0.25 / 64)
    assert once.mean("pass@1").half_width > 4 * as_if_independent


def test_a_gain_is_that_of_pairs() -> None:
    before = result("b", [0.0, 0.2, 0.6, 0.8], levels=["1", "1", "2", "2"])
    after = result("a", [0.1, 0.3, 0.7, 1.0], levels=["1", "1", "2", "2"])
    gain = after.gain(before, "pass@1")
    assert gain.value == pytest.approx(0.125)
    # of 0.1, 0.1, 0.1, 0.2: variance 0.0025, so 1.96 * 0.05 / 2; the means' own are 15 times wider
    assert gain.half_width == pytest.approx(1.959964 * 0.025)
    assert after.gain(before, "pass@1", "2").value == pytest.approx(0.15)
    assert after.mean("pass@1").half_width > 0.3


def test_a_gain_needs_the_same_questions_and_scores() -> None:
    with pytest.raises(
        UserError, match=r"b and a were measured on different questions of q\.jsonl"
    ):
        result("a", [0.1, 0.2]).gain(result("b", [0.1]), "pass@1")
    with pytest.raises(UserError, match="b was measured without maj@4"):
        result("a", [0.1], maj_4=[1.0]).gain(result("b", [0.1]), "maj@4")


def test_means_by_name_and_level() -> None:
    found = result("m", [0.0, 0.5, 1.0], levels=["2", "1", "1"], maj_4=[0.0, 1.0, 1.0])
    assert found.flat() == pytest.approx(
        {
            "pass@1": 0.5,
            "maj@4": 2 / 3,
            "pass@1/level=1": 0.75,
            "maj@4/level=1": 1.0,
            "pass@1/level=2": 0.0,
            "maj@4/level=2": 0.0,
        }
    )
    assert result("m", []).flat() == {}


def test_results_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    saved = [
        result("m", [0.25, 1.0], levels=["1", None], sampling={"samples": 4}),
        result("n", [0.5], data="other"),
    ]
    path = tmp_path / "r.json"
    path.write_text(results_json(saved))
    assert load_results(path) == saved
    (first, _) = json.loads(path.read_text())["results"]
    assert first["means"]["pass@1"]["value"] == 0.625
    assert first["by_level"]["1"]["pass@1"] == {"value": 0.25, "half_width": None, "questions": 1}


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "results": [{}]}'])
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"cannot read results from .*r\.json"):
        load_results(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", {"pass@1": "x"}, "pass@1 = 'x': expected a finite number"),
        ("scores", {"pass@1": None}, "pass@1 = None: expected a finite number"),
        ("scores", {"pass@1": math.nan}, "pass@1 = nan: expected a finite number"),
        ("scores", {"maj@4": 1.0}, "all with the same scores"),
        ("id", [1], r"id = \[1\]: expected text"),
        ("level", 3, "level = 3: expected text"),
    ],
)
def test_scores_that_are_none_are_refused(
    field: str, value: object, message: str, tmp_path: Path
) -> None:
    saved = json.loads(results_json([result("m", [0.0, 1.0])]))
    saved["results"][0]["questions"][1][field] = value
    (tmp_path / "r.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=rf"cannot read results from .*r\.json: .*{message}"):
        load_results(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("questions", [], "expected one question or more"),
        ("step", "x", "step = 'x': expected a whole number"),
        ("data", ["train"], r"data = \['train'\]: expected text"),
    ],
)
def test_results_that_are_none_are_refused(
    field: str, value: object, message: str, tmp_path: Path
) -> None:
    saved = json.loads(results_json([result("m", [0.0, 1.0])]))
    saved["results"][0][field] = value
    (tmp_path / "r.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=message):
        load_results(tmp_path / "r.json")


def test_a_score_that_was_not_measured_is_named() -> None:
    found = result("m", [0.0, 1.0])
    for ask in (lambda: found.mean("maj@4"), lambda: found.gain(found, "maj@4")):
        with pytest.raises(UserError, match="m was measured without maj@4"):
            ask()
