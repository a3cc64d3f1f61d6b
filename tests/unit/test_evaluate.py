"""Scores of scripted answers, by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch

from ttrl.evaluation.evaluation import evaluate
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.types import AnswerKey, Completion, FinishReason, Question

ANSWERS = {"a": ["1", "1", "2", "1.0"], "b": ["3", None, "4", "4"], "c": ["9"] * 4}


class Scripted:
    """An engine that gives `ANSWERS`; the texts of abstentions are cut off."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise AssertionError("nothing to load")

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        for i in reversed(range(len(questions))):
            yield i, tuple(_completion(a) for a in ANSWERS[questions[i].id])


def _completion(answer: str | None) -> Completion:
    if answer is None:
        return Completion((1, 2, 3, 4), (-1.0,) * 4, r"\boxed{", FinishReason.LENGTH)
    return Completion((1, 2), (-1.0,) * 2, rf"so \boxed{{{answer}}}", FinishReason.STOP)


@pytest.fixture
def questions() -> list[Question]:
    return [Question(i, i, (1,)) for i in ANSWERS]


PARAMS = SamplingParams(n=4, temperature=1.0, max_new_tokens=4)


def test_scores_by_hand(questions: list[Question]) -> None:
    key = AnswerKey({"a": "1", "b": "3"}, {"a": "easy", "b": "hard", "c": "hard"})
    seen: list[str] = []
    scores = evaluate(
        RolloutPool(Scripted()),
        questions,
        key,
        PARAMS,
        ks=(1, 2, 4),
        on_group=lambda g: seen.append(g.question.id),
    )
    assert seen == ["b", "a"]  # c has no reference answer and is not sampled
    assert scores["pass@1"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert scores["pass@2"] == pytest.approx((1 + 3 / 6) / 2)
    assert scores["pass@4"] == 1
    assert scores["maj@4"] == pytest.approx((1 + 0) / 2)
    assert scores["abstention_share"] == scores["truncated_share"] == pytest.approx(1 / 8)
    assert scores["response_tokens"] == pytest.approx((2 * 7 + 4) / 8)
    assert scores["pass@1/level=easy"] == pytest.approx(3 / 4)
    assert scores["maj@4/level=hard"] == 0
    assert "maj@1" not in scores


def test_without_answers_there_are_no_scores(questions: list[Question]) -> None:
    assert evaluate(RolloutPool(Scripted()), questions, AnswerKey(), PARAMS, ks=(1,)) == {}


def test_groups_keep_the_order_of_the_questions(questions: list[Question]) -> None:
    groups = RolloutPool(Scripted()).sample(questions, PARAMS)
    assert [g.question.id for g in groups] == ["a", "b", "c"]
    assert [g.policy_version for g in groups] == [0, 0, 0]
