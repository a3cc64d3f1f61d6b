"""Voting in rounds: what is left out, and that the rest is the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_questions

from ttrl.rewards import majority_vote
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, FinishReason, Question, TrainSample


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


def test_a_comparison_decides_nothing_that_is_sampled_later() -> None:
    class Same:
        def logprobs(self, samples: Sequence[TrainSample]) -> list[tuple[float, ...]]:
            return [sample.logprobs for sample in samples]

    pool = RolloutPool(Scripted())
    pool.load_state({"policy_version": 3, "lengths": {"b": 2.0}})
    found = pool.agreement(Same(), [Question(id, "77777777", (1,)) for id in "ab"], PARAMS)
    assert (found.tokens, found.logits) == (2 * PARAMS.n, 0.0)
    assert pool.state() == {"policy_version": 3, "lengths": {"b": 2.0}}


class Held(Scripted):
    """Samples whatever it was brought to the weights of."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[float] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loaded += [float(tensor) for _, tensor in weights]


class Weight:
    def __init__(self, value: float) -> None:
        self.value = value

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "w", torch.tensor(self.value)


def test_the_engine_is_brought_to_the_policy_that_is_asked() -> None:
    engine, first, second = Held(), Weight(1.0), Weight(2.0)
    pool = RolloutPool(engine)
    pool.policies = (first, second)
    pool.push_weights(first)
    asked = [Question("a", "77777777", (1,))]
    (group,) = pool.sample(asked, PARAMS)
    assert engine.loaded == [1.0]  # it is there already
    pool.sample(asked, replace(PARAMS, policy=1))
    pool.sample(asked, replace(PARAMS, policy=1))
    (last,) = pool.sample(asked, PARAMS)
    assert engine.loaded == [1.0, 2.0, 1.0]
    # Nobody has learned anything meanwhile: all answers are of the same version.
    assert group.policy_version == last.policy_version == pool.policy_version == 1
    first.value, second.value = 3.0, 4.0
    pool.push_weights(first)
    pool.sample(asked, replace(PARAMS, policy=1))
    assert engine.loaded[3:] == [3.0, 4.0] and pool.policy_version == 2


def test_one_policy_has_no_number() -> None:
    with pytest.raises(ValueError, match="policy 1 was asked for, and there is one for all"):
        RolloutPool(Held()).sample([Question("a", "7", (1,))], replace(PARAMS, policy=1))


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


@dataclass(frozen=True)
class Thread(Ranks):
    """A rank that is a thread of this process."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    said: list[Any] = field(default_factory=list)

    def gather(self, mine: Any) -> list[Any]:
        self.said[self.rank] = mine
        self.meeting.wait(10)
        every = list(self.said)
        self.meeting.wait(10)
        return every


def test_ranks_that_share_an_engine_stop_when_the_first_of_them_says_so() -> None:
    """What is decided may depend on a deadline. If they asked their engine for different rounds,
    its collectives would wait for ever."""
    engines = [Scripted(), Scripted()]
    questions = [Question("a", "77777777", (1,)), Question("b", "12121233", (1,))]
    said: list[Any] = [None, None]
    meeting = threading.Barrier(2)

    def sample(rank: int) -> list[str]:
        together = Thread(rank, 2, meeting=meeting, said=said)
        decided = leads if rank == 0 else lambda completions, rest: False
        pool = RolloutPool(engines[rank], together, together)
        groups = pool.sample(questions, PARAMS, decided=decided)
        return ["".join(c.text for c in g.completions) for g in groups]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(sample, range(2)))
    assert found == [["777777", "12121233"]] * 2
    assert engines[0].calls == engines[1].calls
    assert [asked for _, _, asked in engines[0].calls] == [["a", "b"]] * 3 + [["b"]]


# ---------------------------------------------------------------------------------------------
# Around any engine

TINY = tiny_questions(1, 40, 3, 17)
SIX = SamplingParams(n=6, temperature=1.3, max_new_tokens=20, stream=(0, "rollout", 1))


class Backwards:
    """An engine that answers the last question first, with its own name."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.names = [name for name, _ in weights]

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        for i in reversed(range(len(questions))):
            yield i, (Completion((i,), (0.0,), questions[i].id, FinishReason.STOP),) * params.n


class Source:
    """A policy with one weight."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "w", torch.zeros(1)


def test_the_pool_returns_groups_in_the_order_of_the_questions() -> None:
    pool, finished = RolloutPool(Backwards()), []
    groups = pool.sample(TINY, SIX, on_group=lambda g: finished.append(g.question.id))
    assert [g.question for g in groups] == TINY
    assert [[c.text for c in g.completions] for g in groups] == [[q.id] * 6 for q in TINY]
    assert finished == ["q3", "q2", "q1", "q0"]


def test_the_pool_counts_the_pushes_that_reached_the_engine() -> None:
    backwards = Backwards()
    pool = RolloutPool(backwards)
    assert pool.sample(TINY[:1], SIX)[0].policy_version == 0
    pool.push_weights(Source())
    pool.push_weights(Source())
    assert backwards.names == ["w"]
    assert pool.sample(TINY[:1], SIX)[0].policy_version == 2
