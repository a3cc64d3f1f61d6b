"""From chosen completions to packed micro-batches."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import answer_of, prompt_of, train_samples

from ttrl.models.packing import Aggregation, pack, sequence_weights
from ttrl.types import TrainSample

AGGREGATIONS = ("token_mean", "sequence_mean", "constant")

# (prompt, completion) lengths
lengths = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=20)

# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1 / 8, 1 / 8, 0.5 / 8]),
        ("sequence_mean", [1 / 3, 1 / 6, 0.5 / 15]),
        ("constant", [1 / 30, 1 / 30, 0.5 / 30]),
    ],
)
def test_weights_by_hand(aggregation: Aggregation, expected: list[float]) -> None:
    """Completions of 1, 2 and 5 tokens; the last has half the weight of the others."""
    samples = train_samples([(9, 1), (2, 2), (1, 5)])
    samples[2] = dataclasses.replace(samples[2], weight=0.5)
    weights = sequence_weights(samples, aggregation, max_new_tokens=10)
    assert weights == pytest.approx(expected, rel=1e-12)


@given(lengths)
def test_total_weight_of_all_tokens(lengths: list[tuple[int, int]]) -> None:
    samples = train_samples(lengths)
    tokens = sum(completion for _, completion in lengths)
    totals = {
        aggregation: sum(
            weight * len(answer_of(s))
            for weight, s in zip(sequence_weights(samples, aggregation, 12), samples, strict=True)
        )
        for aggregation in AGGREGATIONS
    }
    expected = {"token_mean": 1, "sequence_mean": 1, "constant": tokens / (12 * len(samples))}
    assert totals == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_prompts_do_not_enter_the_weights(aggregation: Aggregation) -> None:
    short, long = train_samples([(1, 3), (1, 4)]), train_samples([(9, 3), (1, 4)])
    assert sequence_weights(short, aggregation, 5) == sequence_weights(long, aggregation, 5)


# ---------------------------------------------------------------------------------------------
# Layout

A = TrainSample.of_answer("a", (10, 11, 12), (20, 21), (-0.5, -0.25), advantage=2.0)
B = TrainSample.of_answer("b", (30,), (40,), (-1.5,), advantage=-1.0)
C = TrainSample.of_answer("c", (50, 51), (60, 61, 62, 63), (-1.0, -2.0, -3.0, -4.0), advantage=0.5)


def test_layout_of_a_packed_batch() -> None:
    """Longest first: C has 5 rows, A has 4, B has 1. The last token of each is a target only."""
    (batch,) = pack([A, B, C], [0.125, 0.25, 0.5], tokens_per_batch=10)
    x = -100
    assert batch.token_ids_T.tolist() == [50, 51, 60, 61, 62, 10, 11, 12, 20, 30]
    assert batch.targets_T.tolist() == [x, 60, 61, 62, 63, x, x, 20, 21, 40]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 10]
    assert batch.sampler_logp_T.tolist() == [0, -1, -2, -3, -4, 0, 0, -0.5, -0.25, -1.5]
    assert batch.advantages_T.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0, 0, 2, 2, -1]
    assert batch.token_weights_T.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0.125, 0.125, 0.25]


def test_types_of_a_packed_batch() -> None:
    (batch,) = pack([A, B], [1.0, 1.0], tokens_per_batch=10)
    integers = (batch.token_ids_T, batch.positions_T, batch.targets_T)
    reals = (batch.sampler_logp_T, batch.advantages_T, batch.token_weights_T)
    assert {x.dtype for x in integers} == {torch.int64}
    assert {x.dtype for x in reals} == {torch.float32}
    assert batch.cu_seqlens.dtype == torch.int32


def test_a_completion_of_one_token_trains_the_last_token_of_its_prompt() -> None:
    (batch,) = pack([TrainSample.of_answer("a", (10, 11, 12), (9,), (-2.0,), 2.0)], [1.0], 3)
    assert batch.token_ids_T.tolist() == [10, 11, 12]
    assert batch.targets_T.tolist() == [-100, -100, 9]
    assert batch.token_weights_T.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("budget", "ids"),
    [(5, [["c"], ["a", "b"]]), (9, [["c"], ["a", "b"]]), (10, [["c", "a", "b"]])],
)
def test_batches_are_as_few_as_the_budget_allows_and_of_like_sizes(
    budget: int, ids: list[list[str]]
) -> None:
    batches = pack([A, B, C], [1.0, 1.0, 1.0], budget)
    first = {10: "a", 30: "b", 50: "c"}
    found = [[first[int(b.token_ids_T[i])] for i in b.cu_seqlens[:-1]] for b in batches]
    assert found == ids


def test_a_sequence_longer_than_a_batch_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"'c': a sequence of 5 tokens .*\.tokens_per_batch = 4"):
        pack([A, B, C], [1.0, 1.0, 1.0], tokens_per_batch=4)


@pytest.mark.parametrize(
    ("parts", "ids"),
    [(2, [["c"], ["a", "b"]]), (3, [["c"], ["a"], ["b"]]), (4, [["c"], ["a"], ["b"], []])],
)
def test_every_rank_gets_as_many_batches_some_of_them_without_weight(
    parts: int, ids: list[list[str]]
) -> None:
    batches = pack([A, B, C], [0.125, 0.25, 0.5], 10, parts)
    first = {10: "a", 30: "b", 50: "c"}
    found = [
        [first[int(b.token_ids_T[i])] for i in b.cu_seqlens[:-1]] if b.token_weights_T.any() else []
        for b in batches
    ]
    assert found == ids
    for batch in batches:
        assert len(batch.token_ids_T) > 0  # it goes through the model like any other
    if parts == 4:
        assert (batches[3].token_weights_T == 0).all() and (batches[3].advantages_T == 0).all()


def test_more_batches_are_made_where_the_budget_leaves_gaps() -> None:
    """Three sequences of 4 rows do not fit two batches of 7, whose room is 14."""
    samples = [dataclasses.replace(A, question_id=str(i)) for i in range(3)]
    assert [len(b.cu_seqlens) - 1 for b in pack(samples, [1.0] * 3, 7)] == [1, 1, 1]
    assert [len(b.cu_seqlens) - 1 for b in pack(samples, [1.0] * 3, 7, 2)] == [1, 1, 1, 1]


def test_no_samples_are_no_batches() -> None:
    assert pack([], [], 10) == []


@given(lengths, st.integers(23, 80))
def test_every_sample_is_in_exactly_one_batch_of_at_most_the_budget(
    lengths: list[tuple[int, int]], budget: int
) -> None:
    samples = train_samples(lengths)
    weights = [1.0 + i for i in range(len(samples))]  # tells the samples apart
    batches = pack(samples, weights, budget)
    found = []
    for batch in batches:
        assert len(batch.token_ids_T) <= budget
        assert batch.cu_seqlens[-1] == len(batch.token_ids_T)
        ends = batch.cu_seqlens.tolist()
        for start, end in pairwise(ends):
            rows = slice(start, end)
            i = int(batch.token_weights_T[rows].max()) - 1
            found.append(i)
            prompt, completion = prompt_of(samples[i]), answer_of(samples[i])
            hidden = len(prompt) - 1
            assert batch.token_ids_T[rows].tolist() == [*prompt, *completion[:-1]]
            assert batch.targets_T[rows].tolist() == [-100] * hidden + list(completion)
            assert batch.positions_T[rows].tolist() == list(range(end - start))
            live = [0] * hidden + [1] * len(completion)
            assert batch.token_weights_T[rows].tolist() == [weights[i] * x for x in live]
            assert batch.advantages_T[rows].tolist() == pytest.approx(
                [samples[i].advantages[0] * x for x in live]
            )
    assert sorted(found) == list(range(len(samples)))
    assert len(batches) == 1 or sum(p + c - 1 for p, c in lengths) > budget
