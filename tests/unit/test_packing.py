"""From chosen completions to packed micro-batches."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import answer_of, prompt_of, train_samples

from ttrl.models.dealing import KEYS
from ttrl.models.packing import Aggregation, batch_of, pack, sequence_weights
from ttrl.types import PackedBatch, TrainSample

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
    """Trained tokens are in the order that samples were dealt in, the longest first; rows are in
    that of the samples' tokens. The last token of each is a target only."""
    (batch,) = pack([A, B, C], [0.125, 0.25, 0.5], tokens_per_batch=10)
    assert batch.token_ids_R.tolist() == [10, 11, 12, 20, 30, 50, 51, 60, 61, 62]
    assert batch.positions_R.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4]
    assert batch.sequences.ends.tolist() == [0, 4, 5, 10]
    assert batch.sequences.longest == 5
    assert batch.sequences.keys_K is batch.sequences.key_ends is None
    assert batch.samples == 3
    assert batch.samples_T.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert batch.rows_T.tolist() == [6, 7, 8, 9, 2, 3, 4]
    assert batch.targets_T.tolist() == [60, 61, 62, 63, 20, 21, 40]
    assert batch.sampler_logp_T.tolist() == [-1, -2, -3, -4, -0.5, -0.25, -1.5]
    assert batch.advantages_T.tolist() == [0.5, 0.5, 0.5, 0.5, 2, 2, -1]
    assert batch.token_weights_T.tolist() == [0.5, 0.5, 0.5, 0.5, 0.125, 0.125, 0.25]


def test_a_prompt_that_samples_share_has_its_rows_once() -> None:
    """A's prompt with three answers, one of which has no row of its own, beside B."""
    one = TrainSample.of_answer("a", (10, 11, 12), (7,), (-2.0,), advantage=-0.5)
    long = TrainSample.of_answer("a", (10, 11, 12), (8, 8, 9), (-3.0,) * 3, advantage=0.25)
    batch = batch_of([A, one, B, long], [0.125, 1.0, 0.25, 0.5])
    assert batch.token_ids_R.tolist() == [10, 11, 12, 8, 8, 20, 30]
    assert batch.positions_R.tolist() == [0, 1, 2, 3, 4, 3, 0]
    sequences = batch.sequences
    assert sequences.ends.tolist() == [0, 3, 5, 6, 7]
    assert sequences.longest == 3
    assert sequences.keys_K is not None and sequences.key_ends is not None
    parts = sequences.keys_K.tensor_split(sequences.key_ends[1:-1].long())
    keys = [part.tolist() for part in parts]
    assert keys == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 5], [6]]
    assert sequences.longest_keys == 5
    assert batch.samples_T.tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert batch.rows_T.tolist() == [2, 5, 2, 6, 2, 3, 4]
    assert batch.targets_T.tolist() == [20, 21, 7, 40, 8, 8, 9]
    assert batch.token_weights_T.tolist() == [0.125, 0.125, 1, 0.25, 0.5, 0.5, 0.5]


def test_answers_share_what_they_begin_with() -> None:
    """Two conversations that differ in the last token alone, and one that leaves them before."""
    trained = (False, False, True, False, True)
    samples = [
        TrainSample("a", ids, trained, (-1.0, -1.0), (1.0, 1.0))
        for ids in ((1, 2, 3, 4, 6), (1, 2, 9, 4, 6), (1, 2, 3, 4, 5))
    ]
    batch = batch_of(samples, [1.0] * 3)
    assert batch.token_ids_R.tolist() == [1, 2, 3, 4, 9, 4]
    assert batch.positions_R.tolist() == [0, 1, 2, 3, 2, 3]
    assert batch.sequences.ends.tolist() == [0, 4, 6]
    assert batch.rows_T.tolist() == [1, 3, 1, 5, 1, 3]
    assert batch.targets_T.tolist() == [3, 6, 9, 6, 3, 5]


def test_types_of_a_packed_batch() -> None:
    other = dataclasses.replace(A, token_ids=(10, 11, 12, 22, 21))
    (batch,) = pack([A, B, other], [1.0, 1.0, 1.0], tokens_per_batch=10)
    integers = (batch.token_ids_R, batch.positions_R, batch.targets_T, batch.rows_T)
    reals = (batch.sampler_logp_T, batch.advantages_T, batch.token_weights_T)
    assert {x.dtype for x in (*integers, batch.samples_T)} == {torch.int64}
    assert {x.dtype for x in reals} == {torch.float32}
    assert batch.sequences.keys_K is not None and batch.sequences.key_ends is not None
    assert batch.sequences.keys_K.dtype == torch.int64
    assert batch.sequences.ends.dtype == batch.sequences.key_ends.dtype == torch.int32


def test_a_completion_of_one_token_trains_the_last_token_of_its_prompt() -> None:
    (batch,) = pack([TrainSample.of_answer("a", (10, 11, 12), (9,), (-2.0,), 2.0)], [1.0], 3)
    assert batch.token_ids_R.tolist() == [10, 11, 12]
    assert (batch.rows_T.tolist(), batch.targets_T.tolist()) == ([2], [9])
    assert batch.token_weights_T.tolist() == [1]


@pytest.mark.parametrize(
    ("budget", "ids"),
    [(5, [["c"], ["a", "b"]]), (9, [["c"], ["a", "b"]]), (10, [["a", "b", "c"]])],
)
def test_batches_are_as_few_as_the_budget_allows_and_of_like_sizes(
    budget: int, ids: list[list[str]]
) -> None:
    batches = pack([A, B, C], [1.0, 1.0, 1.0], budget)
    first = {10: "a", 30: "b", 50: "c"}
    found = [[first[int(b.token_ids_R[i])] for i in b.sequences.ends[:-1]] for b in batches]
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
        [first[int(b.token_ids_R[i])] for i in b.sequences.ends[:-1]]
        if b.token_weights_T.any()
        else []
        for b in batches
    ]
    assert found == ids
    for batch in batches:
        assert len(batch.token_ids_R) > 0  # it goes through the model like any other
    if parts == 4:
        assert (batches[3].token_weights_T == 0).all() and (batches[3].advantages_T == 0).all()


def test_more_batches_are_made_where_the_budget_leaves_gaps() -> None:
    """Three sequences of 4 rows do not fit two batches of 7, whose room is 14."""
    samples = [dataclasses.replace(A, token_ids=(10 + i, *A.token_ids[1:])) for i in range(3)]
    assert [b.samples for b in pack(samples, [1.0] * 3, 7)] == [1, 1, 1]
    assert [b.samples for b in pack(samples, [1.0] * 3, 7, 2)] == [1, 1, 1, 1]


def test_no_samples_are_no_batches() -> None:
    assert pack([], [], 10) == []


def test_samples_of_a_prompt_stay_together() -> None:
    """Two prompts of 5 tokens with 8 answers of 5: in bundles of 2, of which a batch takes four."""
    samples = [
        TrainSample.of_answer("q", (prompt,) * 5, (n, 1, 2, 3, 4), (-1.0,) * 5, 1.0)
        for n in range(8)
        for prompt in (7, 8)
    ]
    batches = pack(samples, [1.0] * 16, tokens_per_batch=60)
    assert [b.samples for b in batches] == [8, 8]
    assert [len(b.token_ids_R) for b in batches] == [2 * (5 + 4 * 4)] * 2


def test_keys_of_a_batch_are_bounded() -> None:
    """A prompt of 50 tokens and 100 answers of 2: 150 rows in all, but 51 keys an answer."""
    samples = [TrainSample.of_answer("q", (7,) * 50, (n, 1), (-1.0, -1.0), 1.0) for n in range(100)]
    batches = pack(samples, [1.0] * 100, tokens_per_batch=200)
    assert sum(b.samples for b in batches) == 100
    for batch in batches:
        assert batch.sequences.keys_K is None or len(batch.sequences.keys_K) <= KEYS * 200


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(20, 80),
    st.integers(1, 3),
)
def test_every_sample_is_in_exactly_one_batch_and_sees_all_of_itself(
    lengths: list[tuple[int, int]], prompts: int, budget: int, parts: int
) -> None:
    """Prompts of up to ``prompts`` kinds, so that samples often have the same one."""
    samples = [
        TrainSample.of_answer(
            "q", [p % prompts + 1] * (p % prompts + 2), [50 + i] * n, (-1.0 - i,) * n, 1.0 + i
        )
        for i, (p, n) in enumerate(lengths)
    ]
    weights = [1.0 + i for i in range(len(samples))]  # tells the samples apart
    batches = pack(samples, weights, budget, parts)
    assert len(batches) % parts == 0
    found = []
    for batch in batches:
        assert len(batch.token_ids_R) <= budget
        assert len(batch.targets_T) <= budget
        for s in range(batch.samples):
            of_sample_T = batch.samples_T == s
            weight = batch.token_weights_T[of_sample_T]
            if not weight.any():
                continue  # nothing to do for a rank
            sample = samples[int(weight[0]) - 1]
            found.append(int(weight[0]) - 1)
            assert batch.targets_T[of_sample_T].tolist() == list(answer_of(sample))
            assert batch.sampler_logp_T[of_sample_T].tolist() == list(sample.logprobs)
            assert batch.advantages_T[of_sample_T].tolist() == list(sample.advantages)
            rows = batch.rows_T[of_sample_T].tolist()
            for n, row in enumerate(rows):
                expected = (*prompt_of(sample), *answer_of(sample)[:n])
                assert seen_by(batch, row) == expected
                assert int(batch.positions_R[row]) == len(expected) - 1
    assert sorted(found) == list(range(len(samples)))


def seen_by(batch: PackedBatch, row: int) -> tuple[int, ...]:
    """The tokens that a row sees, in order."""
    sequences, own = batch.sequences, list(range(len(batch.token_ids_R)))
    keys_K = own if sequences.keys_K is None else sequences.keys_K.tolist()
    key_ends = sequences.ends if sequences.key_ends is None else sequences.key_ends
    (s,) = [s for s, (a, b) in enumerate(pairwise(sequences.ends.tolist())) if row in range(a, b)]
    after = int(sequences.ends[s + 1]) - 1 - row  # rows of the sequence behind it
    keys = keys_K[int(key_ends[s]) : int(key_ends[s + 1]) - after]
    return tuple(batch.token_ids_R[keys].tolist())
