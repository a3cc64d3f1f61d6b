"""Confidence of tokens and answers, by hand."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from statistics import fmean

import pytest

from ttrl.report.confidence import Confidence
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup, read_groups, recorded_line
from ttrl.selection.confidence import confidence, groups
from ttrl.settings import SelectionSettings
from ttrl.types import Completion, FinishReason
from ttrl.types.top_logprobs import TopLogprobs

HALF, QUARTER, THREE = math.log(1 / 2), math.log(1 / 4), math.log(3 / 4)


def test_confidence_by_hand() -> None:
    """Of (1/2, 1/2): C = log 2 and KL 0. Of (3/4, 1/4): C = (log 4 + log 4/3) / 2 = 0.8370."""
    found = Confidence.of(TopLogprobs.of([((0, 1), (HALF, HALF)), ((1, 0), (THREE, QUARTER))]))
    assert found is not None
    assert found.likeliest == 2
    assert list(found.tokens) == pytest.approx([0.6931, 0.8370], abs=1e-6)
    kl = 1 / 2 * (math.log((1 / 2) / (3 / 4)) + math.log((1 / 2) / (1 / 4)))
    assert found.certainty == pytest.approx((0 + kl) / 2, abs=1e-4)


@pytest.mark.parametrize("likeliest", [2, 5])
def test_certainty_is_kl_from_uniform_to_the_noted_tokens(likeliest: int) -> None:
    """Of the whole vocabulary (5) it is -1/(nV) Σ log(V p), the self-certainty of the paper."""
    places = [(0.4, 0.3, 0.15, 0.1, 0.05), (0.9, 0.04, 0.03, 0.02, 0.01)]
    noted = [p[:likeliest] for p in places]
    ids = tuple(range(likeliest))
    found = Confidence.of(TopLogprobs.of((ids, tuple(map(math.log, p))) for p in noted))
    assert found is not None
    uniform = 1 / likeliest
    kls = [sum(uniform * math.log(uniform / (x / sum(p))) for x in p) for p in noted]
    assert found.certainty == pytest.approx(fmean(kls), abs=1e-4)
    if likeliest == 5:
        paper = -sum(math.log(5 * x) for p in places for x in p) / (2 * 5)
        assert found.certainty == pytest.approx(paper, abs=1e-4)


def test_what_was_sampled_from_a_part_of_all_tokens_has_no_confidence() -> None:
    nucleus = TopLogprobs.of([((0, 1), (HALF, HALF)), ((1, 0), (0.0, -math.inf))])
    assert Confidence.of(nucleus) is None
    assert Confidence.of(TopLogprobs.of([])) is None


def test_groups_by_hand() -> None:
    assert groups([1, 2, 3, 6], 2).tolist() == [1.5, 2.5, 4.5]
    assert groups([1, 2, 3, 6], 9).tolist() == [3.0]
    assert groups([5], 1).tolist() == [5.0]


@pytest.mark.parametrize(
    ("kind", "window", "expected"),
    [
        ("mean", 2, 4.0),
        ("tail", 2, 7.5),
        ("tail", 99, 4.0),
        ("lowest", 2, 1.5),
        ("lowest", 99, 4.0),
        ("bottom", 2, 1.5),  # a tenth of four groups: one
    ],
)
def test_an_answers_confidence(kind: str, window: int, expected: float) -> None:
    """Groups of two: 1.5, 1.5, 3.5, 7.5."""
    settings = SelectionSettings.model_validate({"confidence": kind, "window": window})
    assert confidence([2, 1, 2, 5, 10], settings) == pytest.approx(expected)


def test_the_lowest_tenth_of_twenty_groups_is_two() -> None:
    settings = SelectionSettings(confidence="bottom", window=1)
    assert confidence([9.0] * 17 + [3.0, 1.0, 8.0], settings) == pytest.approx(2.0)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    top = TopLogprobs.of([((0, 1), (-0.123456789, -2.3)), ((1, 0), (-0.01, -7.123456))])
    completion = Completion((0, 1), (-0.12, -0.01), "hm", FinishReason.STOP, top_logprobs=top)
    answer = RecordedAnswer.of(completion)
    assert answer.surprisal == pytest.approx(0.065)
    group = RecordedGroup("q", "p", (answer, RecordedAnswer("x", 1, True)), data="d")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(recorded_line(group)) + "\n")
    assert read_groups(path) == [group]


@pytest.mark.parametrize("tokens", [[1.0], [1.0, float("nan")], ["x", 1.0]])
def test_what_is_no_confidence_is_refused(tokens: list[object]) -> None:
    said = {"likeliest": 2, "certainty": 1.0, "tokens": tokens}
    with pytest.raises(ValueError, match=r"expected 2 finite numbers|could not convert"):
        Confidence.of_json(said, 2)
    good = Confidence(2, array("f", [1.0, 2.0]), 0.5)
    assert Confidence.of_json(good.as_json(), 2) == good
