"""What the table of docs/models.md says of each architecture, on a tiny random model of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from architectures import EXPECTED, VOCABULARY, WINDOW, settings, table, tiny
from tiny_models import TOKENIZER, all_logprobs, answer_of, at, prompt_of
from transformers import PreTrainedModel

from ttrl.models.packed_model import PackedModel, make_packed
from ttrl.models.packing import batch_of
from ttrl.models.pretrained import context_room
from ttrl.rollout.ends import refuse_overflow
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.types import Question, TrainSample, UserError

LONGEST = 48
LENGTHS = ((5, 3), (30, 12), (1, 1), (9, 8))
"""Prompt and completion tokens: within and beyond the sliding windows of `WINDOW` tokens."""

TEMPERATURE = 0.8

SAME = 2e-4
"""In float32, of log-probs in nats; of gradients as a share of a parameter's largest one. Packing
changes the order of sums of some hundred products, in four layers."""


def samples(model: PreTrainedModel) -> list[TrainSample]:
    """Random sequences with the model's own log-probs."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for i, (prompt, completion) in enumerate(LENGTHS):
        ids = torch.randint(VOCABULARY, (prompt + completion,), generator=rng).tolist()
        parts = tuple(ids[:prompt]), tuple(ids[prompt:])
        with torch.no_grad():
            logp_n = at(all_logprobs(model, *parts, TEMPERATURE), parts[1])
        found.append(TrainSample.of_answer(f"q{i}", *parts, logp_n.tolist(), 1.0 - 0.7 * i))
    return found


def own_gradients(model: PreTrainedModel, every: list[TrainSample]) -> dict[str, torch.Tensor]:
    """Of the policy loss where all ratios are 1, sequence by sequence from the model's logits."""
    for sample in every:
        logp_nV = all_logprobs(model, prompt_of(sample), answer_of(sample), TEMPERATURE)
        logp_n = at(logp_nV, answer_of(sample))
        ratio_n = (logp_n - logp_n.detach()).exp()
        (-sample.advantages[0] * ratio_n.sum()).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_trains(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    every = samples(plain)
    batch = batch_of(every, [1.0] * len(every))
    network = PackedModel(model, torch.float32)
    random = torch.get_rng_state()
    with torch.no_grad():
        logp_T = network(batch, temperature=TEMPERATURE).logp_T
    torch.testing.assert_close(logp_T, batch.sampler_logp_T, rtol=0, atol=SAME)
    network(
        batch,
        temperature=TEMPERATURE,
        advantages_T=batch.advantages_T,
        token_weights_T=batch.token_weights_T,
        old_logp_T=batch.sampler_logp_T,
    ).loss.backward()
    assert torch.equal(torch.get_rng_state(), random), "something random acts"
    their_grads = own_gradients(plain, every)
    our_grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert our_grads.keys() == their_grads.keys()
    largest = max(grad.abs().max().item() for grad in their_grads.values())
    for name, grad in their_grads.items():  # that of a bias of keys is 0, but for rounding
        limit = SAME * max(grad.abs().max().item(), 0.01 * largest)
        torch.testing.assert_close(our_grads[name], grad, rtol=0, atol=limit, msg=name)


def assert_samples_its_own(plain: PreTrainedModel) -> None:
    """Left-padded prompts, decoded with a cache from within a sliding window to beyond it."""
    engine = TransformersEngine(plain, TOKENIZER, batch_size=8)
    params = SamplingParams(n=2, temperature=TEMPERATURE, max_new_tokens=6, stream=(0,))
    questions = [
        Question(f"q{n}", "", tuple(1 + i % 50 for i in range(n))) for n in (3, WINDOW - 3, 20)
    ]
    for i, completions in engine.sample(questions, params):
        for c in completions:
            with torch.no_grad():
                logp_nV = all_logprobs(plain, questions[i].prompt_ids, c.token_ids, TEMPERATURE)
            own_n = at(logp_nV, c.token_ids)
            torch.testing.assert_close(torch.tensor(c.logprobs), own_n, rtol=0, atol=SAME)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_architecture_trains_or_is_refused_with_its_cause(name: str) -> None:
    cause = EXPECTED[name].get("refused")
    try:
        plain = tiny(name)
        asked = [Question("q", "", (1,) * LENGTHS[1][0])]
        params = SamplingParams(1, 1.0, LONGEST - LENGTHS[1][0])
        refuse_overflow(asked, params, context_room(plain))
        model = copy.deepcopy(plain)
        make_packed(model, settings(name), longest=LONGEST)
    except UserError as error:
        said = str(error)
        assert cause is not None, f"was refused: {said}"
        assert cause in said and "\n" not in said
        return
    assert cause is None, "was not refused"
    assert_trains(model, plain)
    assert_samples_its_own(plain)


def test_the_page_shows_what_is_expected() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- tests/architectures.py: table -->\n\n")[2]
    assert shown.startswith(table() + "\n")
