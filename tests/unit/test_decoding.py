"""What the embedded engine samples, against a loop without batch and cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    STOPS,
    TOKENIZER,
    all_logprobs,
    tiny_model,
    tiny_questions,
)

from ttrl.rollout.engines import transformers_engine
from ttrl.rollout.engines.shared_prompts import SHARED
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.system.rng import generator
from ttrl.types import Question

QUESTIONS = tiny_questions(1, 40, 3, 17)
PARAMS = SamplingParams(n=6, temperature=0.7, max_new_tokens=20, stream=(0, "rollout", 1))


def one_by_one(
    ours: TransformersEngine, question: Question, index: int, params: SamplingParams
) -> tuple[list[int], list[float]]:
    """Tokens and log-probs of a sample, by a forward of the whole sequence for every token: no
    batch, no cache."""
    uniforms = generator(*params.stream, question.id, index).random(params.max_new_tokens)
    tokens: list[int] = []
    logprobs: list[float] = []
    for u in uniforms:
        with torch.no_grad():
            plain_nV = all_logprobs(ours.model, question.prompt_ids, (*tokens, 0), 1.0)
        logp_V = torch.log_softmax(plain_nV[-1].double() / params.temperature, dim=-1)
        tokens.append(int((logp_V.exp().cumsum(0) > u).nonzero()[0]))
        logprobs.append(logp_V[tokens[-1]].item())
        if tokens[-1] in ours.stop_ids:
            break
    return tokens, logprobs


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_samples_are_those_of_a_loop_without_batch_and_cache(
    name: str, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for models that go on with transformers' own cache."""
    if not shares:
        monkeypatch.setattr(transformers_engine, "share_prompts", lambda model: None)
    model = tiny_model(name.partition("-")[0], **{"eos_token_id": STOPS, **ARCHITECTURES[name]})
    ours = TransformersEngine(model, TOKENIZER, batch_size=19)
    assert (model.config._attn_implementation == SHARED) is shares
    for place, completions in ours.sample(QUESTIONS, PARAMS):
        question = QUESTIONS[place]
        for index, completion in enumerate(completions):
            tokens, logprobs = one_by_one(ours, question, index, PARAMS)
            assert list(completion.token_ids) == tokens
            assert completion.logprobs == pytest.approx(logprobs, abs=3e-5)


def test_what_begins_alike_is_computed_once() -> None:
    """The rows that the model is fed are the different beginnings of the samples: at a low
    temperature, few."""
    ours = TransformersEngine(tiny_model(), TOKENIZER, batch_size=64)
    fed = []
    ours.model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    params = dataclasses.replace(PARAMS, temperature=0.1, n=12)
    samples = {i: [c.token_ids for c in group] for i, group in ours.sample(QUESTIONS, params)}
    expected = [
        len({(i, c[:size]) for i, group in samples.items() for c in group if len(c) > size})
        for size in range(1, params.max_new_tokens)
    ]
    assert fed == [(len(QUESTIONS), 40), *((rows, 1) for rows in expected)]
    assert sum(expected) < 0.5 * sum(len(c) for group in samples.values() for c in group)
