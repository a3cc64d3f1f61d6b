"""Voting in rounds: what is left out, and that the rest is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttrl.rewards import majority_vote
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.types import Completion, FinishReason, Question


class Scripted:
    """Sample i of a question is the i-th letter of its prompt."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, list[str]]] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise AssertionError("nothing to load")

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        self.calls.append((params.first, params.n, [q.id for q in questions]))
        for i in reversed(range(len(questions))):
            letters = questions[i].prompt[params.first : params.first + params.n]
            yield i, tuple(Completion((1,), (0.0,), x, FinishReason.STOP) for x in letters)


def leads(completions: Sequence[Completion], rest: int) -> bool:
    counts = [*(count for _, count in Counter(c.text for c in completions).most_common(2)), 0]
    return counts[0] - counts[1] > rest


PARAMS = SamplingParams(n=8, temperature=1.0, max_new_tokens=4)


def test_rounds_end_where_the_lead_is_out_of_reach() -> None:
    engine = Scripted()
    questions = [Question("a", "77777777", (1,)), Question("b", "12121233", (1,))]
    done: list[str] = []
    groups = RolloutPool(engine).sample(
        questions, PARAMS, lambda g: done.append(g.question.id), leads
    )
    # "a" has 6 of 8 after three rounds of two; "b" is open to the end.
    assert ["".join(c.text for c in g.completions) for g in groups] == ["777777", "12121233"]
    assert done == ["a", "b"]
    assert engine.calls == [
        (0, 2, ["a", "b"]),
        (2, 2, ["a", "b"]),
        (4, 2, ["a", "b"]),
        (6, 2, ["b"]),
    ]


@pytest.mark.parametrize("n", [1, 3, 5, 9])
def test_a_last_round_may_be_smaller(n: int) -> None:
    params = SamplingParams(n=n, temperature=1.0, max_new_tokens=4)
    question = Question("a", "123456789"[:n], (1,))
    (group,) = RolloutPool(Scripted()).sample([question], params, decided=lambda c, rest: False)
    assert "".join(c.text for c in group.completions) == question.prompt


def test_without_rounds_there_is_one_request() -> None:
    engine = Scripted()
    RolloutPool(engine).sample([Question("a", "77777777", (1,))], PARAMS)
    assert engine.calls == [(0, 8, ["a"])]


@given(st.text("123", min_size=2, max_size=24))
def test_the_label_is_that_of_all_votes(answers: str) -> None:
    params = SamplingParams(n=len(answers), temperature=1.0, max_new_tokens=4)
    question = Question("a", answers, (1,))
    (group,) = RolloutPool(Scripted()).sample([question], params, decided=leads)
    elected = majority_vote([c.text for c in group.completions]).majority
    assert elected == majority_vote(list(answers)).majority
