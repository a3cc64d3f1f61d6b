"""Training on some of a list: which are trained on, what is measured, and what is refused."""

from __future__ import annotations

import json

import pytest

from ttrl.data.sources import picked
from ttrl.data.sources.question_list import QuestionList
from ttrl.evaluation.evaluation import all_scores
from ttrl.report.results import EvaluationResult, QuestionScores
from ttrl.settings import DataSettings
from ttrl.settings.recipe import load_settings
from ttrl.types import Question, UserError

QUESTIONS = [Question(id, f"{id}?", (i,)) for i, id in enumerate(("a", "b", "c", "d"))]


def test_ids_are_taken_in_their_own_order() -> None:
    found = picked(QUESTIONS, DataSettings(train="arithmetic:train", ids=("c", "a")))
    assert found == (QUESTIONS[2], QUESTIONS[0])


def test_an_id_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"\['x'\] are no ids of the 4 questions"):
        picked(QUESTIONS, DataSettings(train="arithmetic:train", ids=("a", "x")))


@pytest.mark.parametrize(
    ("ids", "per_step", "words"),
    [(["a", "a"], 1, "names one twice"), (["a"], 2, r"is more than\s+data.ids names \(1\)")],
)
def test_settings_that_cannot_work_are_refused(ids: list[str], per_step: int, words: str) -> None:
    given = [f"data.ids={json.dumps(ids)}", f"rollout.questions_per_step={per_step}"]
    with pytest.raises(UserError, match=words):
        load_settings("tiny-arithmetic", overrides=given)


def test_the_list_that_is_trained_on_has_an_identity_of_its_own() -> None:
    whole, some = QuestionList(QUESTIONS, 1, 0), QuestionList(QUESTIONS[:1], 1, 0)
    assert whole.digest() != some.digest()
    assert some.questions(1) == some.questions(2) == QUESTIONS[:1]


@pytest.mark.parametrize(
    ("asked", "compared", "window"), [(4, 1, 4), (4, 8, 8), (3, 8, 9), (1, 8, 8), (2, 1, 2)]
)
def test_whole_passes_are_compared(asked: int, compared: int, window: int) -> None:
    assert QuestionList(QUESTIONS[:asked], 1, 0, compared=compared).window == window


def test_others_are_measured_apart() -> None:
    scored = tuple(
        QuestionScores(id=id, level=None, scores={"pass@1": score})
        for id, score in (("a", 1.0), ("b", 0.5), ("c", 0.0))
    )
    whole = EvaluationResult(model="m", data="train", sampling={}, questions=scored)
    found = all_scores({"train": whole}, ("a",))
    assert found["train"]["pass@1"] == pytest.approx(0.5)
    assert found["others"]["pass@1"] == pytest.approx(0.25)  # 0.5 and 0
    assert set(all_scores({"train": whole}, ())) == {"train"}
