"""The embedded rollout engine against plain forward passes of its own model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    STOPS,
    TOKENIZER,
    VOCABULARY,
    all_logprobs,
    tiny_model,
    tiny_questions,
)

from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.sampling import SamplingParams, sampling_logprobs
from ttrl.types import Completion, FinishReason, Question, UserError

# Prompts of very different lengths, so that the short ones are mostly padding in a batch.
QUESTIONS = tiny_questions(1, 40, 3, 17)
PARAMS = SamplingParams(n=6, temperature=1.3, max_new_tokens=20, stream=(0, "rollout", 1))

# Decoding with a cache, left-padded, in a batch, adds up the same float32 products in another
# order than one plain forward does. Logits are around 10, so that is 1e-6 per sum, and some
# hundred sums in a row.
LOGP_TOLERANCE = 1e-4


def engine(
    kind: str = "qwen2", batch_size: int = 64, seed: int = 0, **changes: Any
) -> TransformersEngine:
    model = tiny_model(kind, seed, **{"eos_token_id": STOPS, **changes})
    return TransformersEngine(model, TOKENIZER, batch_size)


def sample(
    engine: TransformersEngine,
    questions: list[Question] | None = None,
    params: SamplingParams = PARAMS,
) -> dict[str, tuple[Completion, ...]]:
    questions = QUESTIONS if questions is None else questions
    return {questions[i].id: completions for i, completions in engine.sample(questions, params)}


def tokens(samples: dict[str, tuple[Completion, ...]]) -> dict[str, list[tuple[int, ...]]]:
    return {id: [c.token_ids for c in completions] for id, completions in samples.items()}


def assert_same_samples(
    ours: dict[str, tuple[Completion, ...]], theirs: dict[str, tuple[Completion, ...]]
) -> None:
    assert tokens(ours) == tokens(theirs)
    for id, completions in ours.items():
        for a, b in zip(completions, theirs[id], strict=True):
            assert a.finish_reason == b.finish_reason
            assert a.text == b.text
            assert a.logprobs == pytest.approx(b.logprobs, abs=LOGP_TOLERANCE)


# ---------------------------------------------------------------------------------------------
# Log-probs


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_logprobs_are_those_of_a_plain_forward(name: str, top_p: float) -> None:
    ours = engine(name.partition("-")[0], batch_size=7, **ARCHITECTURES[name])
    params = dataclasses.replace(PARAMS, top_p=top_p)
    samples = sample(ours, params=params)
    assert list(samples) == [q.id for q in QUESTIONS]
    for question in QUESTIONS:
        assert len(samples[question.id]) == params.n
        for completion in samples[question.id]:
            plain_nV = all_logprobs(ours.model, question.prompt_ids, completion.token_ids, 1.0)
            expected_nV = sampling_logprobs(plain_nV, params.temperature, top_p)
            ids_n1 = torch.tensor(completion.token_ids).unsqueeze(1)
            expected = expected_nV.gather(1, ids_n1).squeeze(1).tolist()
            assert completion.logprobs == pytest.approx(expected, abs=LOGP_TOLERANCE)


@pytest.mark.parametrize(
    "noted",
    [
        {"top_logprobs": 5},
        {"top_logprobs": 2, "top_p": 0.3},
        {"top_k": 7},
        {"top_k": 9, "top_p": 0.4, "min_p": 0.2},
        {"top_k": 3, "top_logprobs": 9},
        {"top_k": 100 * VOCABULARY},
    ],
)
def test_the_likeliest_tokens_are_those_of_a_plain_forward(noted: dict[str, Any]) -> None:
    """With ``top_k`` they are all that could be drawn: their mass is 1."""
    params = dataclasses.replace(PARAMS, **noted)
    ours = engine(batch_size=7)
    for question in QUESTIONS:
        for completion in sample(ours, params=params)[question.id]:
            plain_nV = all_logprobs(ours.model, question.prompt_ids, completion.token_ids, 1.0)
            expected_nV = sampling_logprobs(
                plain_nV, params.temperature, params.top_p, params.top_k, params.min_p
            )
            top = completion.top_logprobs
            assert top is not None
            assert top.whole == (params.top_k > 0)
            assert len(top) == len(completion.token_ids) == len(list(top))
            for (ids, logprobs), token, expected_V in zip(
                top, completion.token_ids, expected_nV, strict=True
            ):
                possible = int((expected_V > -math.inf).sum())
                values = expected_V.topk(min(params.noted, possible)).values
                assert list(logprobs) == pytest.approx(values.tolist(), abs=LOGP_TOLERANCE)
                assert expected_V[list(ids)].tolist() == pytest.approx(
                    list(logprobs), abs=LOGP_TOLERANCE
                )
                assert len(set(ids)) == len(ids)
                if top.whole:
                    assert token in ids
                    assert math.fsum(map(math.exp, logprobs)) == pytest.approx(1, abs=1e-5)


def test_what_is_noted_changes_no_sample() -> None:
    plain = sample(engine())
    assert all(c.top_logprobs is None for group in plain.values() for c in group)
    noted = sample(engine(), params=dataclasses.replace(PARAMS, top_logprobs=3))
    forgotten = {
        id: tuple(dataclasses.replace(c, top_logprobs=None) for c in group)
        for id, group in noted.items()
    }
    assert forgotten == plain


def test_samples_follow_the_distribution_of_the_model() -> None:
    """The first token of many samples, against the model's own probabilities."""
    ours = engine(batch_size=2000)
    params = SamplingParams(n=2000, temperature=1.3, max_new_tokens=1)
    first = torch.tensor([c.token_ids for c in sample(ours, QUESTIONS[:1], params)["q0"]]).flatten()
    probs = all_logprobs(ours.model, QUESTIONS[0].prompt_ids, (0,), 1.3)[0].exp()
    expected = 2000 * probs
    often = expected > 5
    assert int(often.sum()) > 20
    observed = first.bincount(minlength=VOCABULARY)
    chi_square = ((observed - expected).square() / expected)[often].sum().item()
    freedom = int(often.sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # mean + 4 standard deviations


# ---------------------------------------------------------------------------------------------
# What a sample depends on, and what not


@pytest.mark.parametrize("batch_size", [1, 5, 24, 1000])
def test_samples_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert_same_samples(sample(engine(batch_size=batch_size)), sample(engine(batch_size=9)))


@pytest.mark.parametrize("picked", [[3, 2, 1, 0], [2], [1, 3]])
def test_samples_do_not_depend_on_the_other_questions_or_their_order(picked: list[int]) -> None:
    expected = sample(engine())
    questions = [QUESTIONS[i] for i in picked]
    assert_same_samples(
        sample(engine(batch_size=4), questions), {q.id: expected[q.id] for q in questions}
    )


def test_samples_do_not_depend_on_how_many_are_asked_for() -> None:
    few, many = sample(engine()), sample(engine(), params=dataclasses.replace(PARAMS, n=11))
    assert_same_samples(few, {id: completions[: PARAMS.n] for id, completions in many.items()})


def test_an_engine_keeps_nothing_from_one_call_to_the_next() -> None:
    ours = engine()
    first = sample(ours)
    sample(ours, params=dataclasses.replace(PARAMS, stream=("other",)))
    assert sample(ours) == first


@pytest.mark.parametrize("stream", [(0, "rollout", 2), (1, "rollout", 1), (0, "exam", 1), ()])
def test_another_stream_gives_other_samples(stream: tuple[int | str, ...]) -> None:
    """Compared on first tokens, which no earlier difference can have changed."""
    ours = engine(batch_size=100)
    params = dataclasses.replace(PARAMS, n=20, max_new_tokens=1)
    one = tokens(sample(ours, params=params))
    other = tokens(sample(ours, params=dataclasses.replace(params, stream=stream)))
    for id in one:
        equal = sum(a == b for a, b in zip(one[id], other[id], strict=True))
        assert equal < 10


def test_samples_of_one_question_differ_and_so_do_questions_with_one_prompt() -> None:
    prompt = QUESTIONS[3].prompt_ids
    twins = [Question("a", "unused", prompt), Question("b", "unused", prompt)]
    params = dataclasses.replace(PARAMS, max_new_tokens=60)
    samples = tokens(sample(engine(eos_token_id=None), twins, params))
    assert len({*samples["a"], *samples["b"]}) == 2 * params.n


def test_nothing_to_sample() -> None:
    assert sample(engine(), []) == {}


# ---------------------------------------------------------------------------------------------
# Where a completion ends


def test_a_completion_ends_with_its_first_stop_token_or_at_the_limit() -> None:
    params = dataclasses.replace(PARAMS, n=40)
    completions = [c for group in sample(engine(), params=params).values() for c in group]
    stops = {*STOPS, TOKENIZER.eos_token_id}
    for completion in completions:
        *before, last = completion.token_ids
        assert not stops & set(before)
        stopped = last in stops
        assert completion.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert stopped or len(completion.token_ids) == params.max_new_tokens
        assert len(completion.logprobs) == len(completion.token_ids) <= params.max_new_tokens
    lengths = {len(c.token_ids) for c in completions}
    assert {1, params.max_new_tokens} <= lengths  # both ends are covered
    assert {c.finish_reason for c in completions} == {FinishReason.STOP, FinishReason.LENGTH}
    at_the_limit = [c for c in completions if len(c.token_ids) == params.max_new_tokens]
    assert {c.finish_reason for c in at_the_limit} == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_shorter_limit_cuts_the_same_samples_short(limit: int) -> None:
    full = sample(engine())
    short = sample(engine(), params=dataclasses.replace(PARAMS, max_new_tokens=limit))
    assert tokens(short) == {id: [t[:limit] for t in group] for id, group in tokens(full).items()}


@pytest.mark.parametrize(
    ("eos_token_id", "expected"),
    [
        (None, {TOKENIZER.eos_token_id}),
        (33, {33, TOKENIZER.eos_token_id}),
        ([33, 7], {33, 7, TOKENIZER.eos_token_id}),
        (TOKENIZER.eos_token_id, {TOKENIZER.eos_token_id}),
    ],
)
def test_stop_tokens_are_those_of_model_and_tokenizer(
    eos_token_id: int | list[int] | None, expected: set[int]
) -> None:
    assert engine(eos_token_id=eos_token_id).stop_ids == expected


@pytest.mark.parametrize("letters", [1, 2])
def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(letters: int) -> None:
    """Every sample is the beginning of the one without stop strings, to the first of them."""
    ours = engine(eos_token_id=None)
    plain = sample(ours)
    texts = [c.text for group in plain.values() for c in group]
    pairs = [text[i : i + letters] for text in texts for i in range(3, len(text) - letters)]
    readable = [pair for pair in pairs if pair.isascii() and pair.isprintable()]
    stop = tuple(sorted(set(readable), key=readable.count)[-3:])
    cut = sample(ours, params=dataclasses.replace(PARAMS, stop=stop))
    ended = 0
    for id, completions in cut.items():
        for completion, whole in zip(completions, plain[id], strict=True):
            size = len(completion.token_ids)
            assert completion.token_ids == whole.token_ids[:size]
            before = TOKENIZER.decode(completion.token_ids[:-1], skip_special_tokens=True)
            assert not any(string in before for string in stop)
            found = any(string in completion.text for string in stop)
            assert found == (completion.finish_reason is FinishReason.STOP)
            assert found or completion.token_ids == whole.token_ids
            ended += found
    assert 0 < ended < len(texts)


def test_each_of_several_stop_tokens_ends_a_completion() -> None:
    params = dataclasses.replace(PARAMS, n=200)
    samples = sample(engine(batch_size=200), QUESTIONS[:1], params)["q0"]
    last = {c.token_ids[-1] for c in samples if c.finish_reason is FinishReason.STOP}
    assert last <= {*STOPS, TOKENIZER.eos_token_id}
    assert len(last) > 5


def test_text_is_the_decoded_tokens_without_special_ones() -> None:
    completions = [c for group in sample(engine()).values() for c in group]
    for completion in completions:
        assert completion.text == TOKENIZER.decode(completion.token_ids, skip_special_tokens=True)
    special = set(TOKENIZER.all_special_ids)
    assert any(special & set(c.token_ids) for c in completions)


# ---------------------------------------------------------------------------------------------
# The model's context


def test_a_prompt_without_room_for_the_answer_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"'q1' has 40 tokens .* 41 in all, .* context is 40; lower"
    ):
        sample(engine(max_position_embeddings=40), params=SamplingParams(1, 1.0, 1))


def test_prompt_and_answer_may_fill_the_context() -> None:
    ours = engine("gpt2", n_positions=60, max_position_embeddings=60)
    assert sample(ours)["q1"]


# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_after_a_push_the_engine_samples_as_one_built_from_these_weights(
    changes: dict[str, Any],
) -> None:
    ours, theirs = engine(seed=0, **changes), engine(seed=1, **changes)
    expected = sample(theirs)
    assert tokens(sample(ours)) != tokens(expected)
    ours.load_weights(theirs.model.named_parameters())
    assert sample(ours) == expected


def test_pushed_weights_are_copies() -> None:
    ours, policy = engine(seed=0), tiny_model(seed=1)
    ours.load_weights(policy.named_parameters())
    expected = sample(ours)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert sample(ours) == expected


def test_pushed_weights_are_rounded_to_the_engine_s_type() -> None:
    model, policy = tiny_model(seed=0).to(torch.bfloat16), tiny_model(seed=1)
    ours = TransformersEngine(model, TOKENIZER, 8)
    ours.load_weights(policy.named_parameters())
    for name, parameter in policy.named_parameters():
        received = model.get_parameter(name)
        assert received.dtype == torch.bfloat16
        assert torch.equal(received, parameter.to(torch.bfloat16))
    assert sample(ours, params=dataclasses.replace(PARAMS, max_new_tokens=2))


def test_a_push_with_a_missing_weight_names_it() -> None:
    ours = engine()
    partial = dict(ours.model.named_parameters())
    del partial["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"1 parameters missing: \['model\.norm\.weight'\]"):
        ours.load_weights(partial.items())


def test_a_push_with_an_unknown_weight_names_it() -> None:
    ours = engine()
    more = {**dict(ours.model.named_parameters()), "model.extra": torch.zeros(3)}
    with pytest.raises(RuntimeError, match=r"unknown parameter 'model\.extra'"):
        ours.load_weights(more.items())


def test_a_push_of_another_shape_is_refused_even_where_it_could_be_broadcast() -> None:
    ours = engine()
    weights = dict(ours.model.named_parameters())
    weights["lm_head.weight"] = weights["lm_head.weight"][:1].clone()
    with pytest.raises(RuntimeError, match=r"'lm_head\.weight' has the shape \[1, 32\]"):
        ours.load_weights(weights.items())
