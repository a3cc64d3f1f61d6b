"""Answers sampled from few tokens: the policy's loss is of what they were sampled from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tiny_models import (
    TOKENIZER,
    answer_of,
    figures_of,
    make_settings,
    plain_twin,
    prompt_of,
    saved,
    tiny_model,
    tiny_questions,
    update,
)
from transformers import PreTrainedModel

from ttrl.credit.group_baseline import sample_of
from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.models.packed_model import load_policy_model
from ttrl.models.packing import batch_of, pack
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import sampling_logprobs, voting
from ttrl.settings import Settings
from ttrl.types import TrainSample, UserError
from ttrl.types.top_logprobs import TopLogprobs

ROUNDING = 1e-4
"""Nats, float32: the policy's sums are packed, the engine's are step by step."""
FEW = {"top_k": 6, "top_p": 0.85, "min_p": 0.03}
EVERY_TERM = {
    "loss_policy": "none",
    "kl_coef": 0.3,
    "kl_estimator": "k3",
    "entropy_coef": 0.2,
    "aggregation": "token_mean",
}


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    return load_policy_model(saved(tiny_model(), tmp_path))


def settings_of(**update: object) -> Settings:
    return make_settings(update, rollout=FEW)


def sampled(policy: LocalModel, settings: Settings) -> list[TrainSample]:
    """Answers of an engine at the policy's weights, every other one a little worse."""
    engine = TransformersEngine(tiny_model(seed=1), TOKENIZER, batch_size=16)
    engine.load_weights(policy.named_weights())
    groups = RolloutPool(engine).sample(tiny_questions(9, 3, 17), voting(settings, "rollout", 1))
    return [sample_of(g, i, (-1.0) ** i, 1.0) for g in groups for i in range(len(g.completions))]


def without_supports(samples: list[TrainSample]) -> list[TrainSample]:
    return [dataclasses.replace(sample, support=None) for sample in samples]


def test_supports_are_laid_out_row_by_row() -> None:
    few = TrainSample.of_answer("a", (1, 2), (3, 4), (-0.5, 0.0), 1.0)
    one = TopLogprobs.of([((3, 9), (-0.5, -0.9)), ((4,), (0.0,))], whole=True)
    all_of_it = TrainSample.of_answer("b", (5,), (6, 7), (-0.5, 0.0), 1.0)
    batch = batch_of([dataclasses.replace(few, support=one), all_of_it], [1.0, 1.0])
    assert batch.support_TM is not None
    assert batch.targets_T.tolist() == [3, 4, 6, 7]
    assert batch.support_TM.tolist() == [[3, 9], [4, -1], [-1, -1], [-1, -1]]
    assert batch_of([all_of_it], [1.0]).support_TM is None


def test_engine_and_policy_agree_and_would_not_without_the_supports(
    model: PreTrainedModel,
) -> None:
    settings = settings_of()
    policy = LocalModel(model, settings)
    samples = sampled(policy, settings)
    assert all(sample.support is not None for sample in samples)
    for chosen, agrees in ((samples, True), (without_supports(samples), False)):
        gaps = [
            abs(ours - theirs)
            for sample, own in zip(chosen, policy.logprobs(chosen), strict=True)
            for ours, theirs in zip(sample.logprobs, own, strict=True)
        ]
        assert (max(gaps) < ROUNDING) == agrees
        assert agrees or max(gaps) > 0.3
    (result,) = update(policy, samples, 1e-2)
    assert result.largest["sampler_max_gap"] < ROUNDING
    assert result.means["clip_fraction"] == 0


def test_the_pool_compares_what_was_sampled_from(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of()
    policy = LocalModel(model, settings)
    engine = TransformersEngine(tiny_model(seed=1), TOKENIZER, batch_size=16)
    pool = RolloutPool(engine)
    pool.push_weights(policy)
    asked = tiny_questions(9, 3, 17), voting(settings, "verify")
    found = pool.verify(policy, *asked, "float32")
    assert found.largest < ROUNDING
    forgetful = TrainSample.of_answer
    monkeypatch.setattr(
        TrainSample, "of_answer", lambda *args, support, **kwargs: forgetful(*args, **kwargs)
    )
    with pytest.raises(UserError, match="computes another model"):
        pool.verify(policy, *asked, "float32")


def test_loss_and_gradients_are_those_of_plain_float64(model: PreTrainedModel) -> None:
    """The policy, its KL to a reference and its entropy, all over what could be drawn."""
    settings = settings_of(**EVERY_TERM)
    policy = LocalModel(model, settings)
    samples = sampled(policy, settings)
    with torch.no_grad():  # so that the KL is not 0
        for parameter in policy.model.parameters():
            parameter.mul_(1.05)
    objective = PolicyObjective.of(settings, policy)
    (batch,) = pack(samples, objective.token_weights(samples), 4096)
    found = objective.loss(policy.network, batch)
    named = dict(policy.model.named_parameters())
    ours = torch.autograd.grad(found.loss, list(named.values()))

    twin, reference = plain_twin(policy.model), plain_twin(policy.reference.model)  # type: ignore[union-attr]
    tokens = sum(len(sample.logprobs) for sample in samples)
    total, entropies = torch.zeros((), dtype=torch.float64), []
    for sample in samples:
        logp_nV, ref_nV = (restricted(m, sample, settings) for m in (twin, reference))
        ids_n1 = torch.tensor(answer_of(sample)).unsqueeze(1)
        logp_n, ref_n = (x.gather(1, ids_n1).squeeze(1) for x in (logp_nV, ref_nV.detach()))
        gap_n = ref_n - logp_n
        probs_nV = logp_nV.exp()
        entropy_n = -(probs_nV * logp_nV.masked_fill(probs_nV == 0, 0)).sum(1)
        ratio_n = (logp_n - torch.tensor(sample.logprobs, dtype=torch.float64)).exp()
        token_n = -ratio_n * sample.advantages[0] + 0.3 * (gap_n.exp() - gap_n - 1)
        total = total + (token_n - 0.2 * entropy_n).sum() / tokens
        entropies.append(entropy_n.detach())
    truth = torch.autograd.grad(total, [twin.get_parameter(name) for name in named])
    assert found.loss.item() == pytest.approx(total.item(), rel=1e-4)
    entropy_T = found.means["entropy"].double()
    assert sorted(entropy_T.tolist()) == pytest.approx(
        sorted(torch.cat(entropies).tolist()), abs=1e-4
    )
    size = max(gradient.abs().max().item() for gradient in truth)
    for name, mine, theirs in zip(named, ours, truth, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4 * size, msg=name)


def restricted(model: PreTrainedModel, sample: TrainSample, settings: Settings) -> torch.Tensor:
    """[n, V]: log-probs of a plain forward, over what could be drawn in each place."""
    assert sample.support is not None
    ids_1T = torch.tensor([sample.token_ids])
    rows_nV = model(input_ids=ids_1T).logits[0, len(prompt_of(sample)) - 1 : -1]
    outside_nV = torch.ones_like(rows_nV, dtype=torch.bool)
    for row, (ids, _) in zip(outside_nV, sample.support, strict=True):
        row[list(ids)] = False
    rows_nV = rows_nV / settings.rollout.temperature
    return torch.log_softmax(rows_nV.masked_fill(outside_nV, -math.inf), dim=-1)


def test_the_supports_are_those_of_the_filters(model: PreTrainedModel) -> None:
    settings = settings_of()
    policy = LocalModel(model, settings)
    twin, sizes = plain_twin(model), set()
    for sample in sampled(policy, settings):
        assert sample.support is not None
        logits = twin(input_ids=torch.tensor([sample.token_ids])).logits[0]
        rows_nV = logits[len(prompt_of(sample)) - 1 : -1]
        rollout = settings.rollout
        expected_nV = sampling_logprobs(
            rows_nV, rollout.temperature, rollout.top_p, rollout.top_k, rollout.min_p
        )
        for (ids, _), expected_V in zip(sample.support, expected_nV, strict=True):
            assert set(ids) == set((expected_V > -math.inf).nonzero().flatten().tolist())
            sizes.add(len(ids))
    assert {1, 2, 3} <= sizes <= set(range(1, 7))


def test_no_split_into_batches_changes_more_than_rounding(tmp_path: Path) -> None:
    """Some answers have supports, and some do not."""
    place = saved(tiny_model(), tmp_path)
    figures = []
    for room in (64, 4096):
        settings = settings_of(tokens_per_batch=room, **EVERY_TERM)
        policy = LocalModel(load_policy_model(place), settings)
        samples = sampled(policy, settings)
        samples[1::3] = without_supports(samples[1::3])
        (result,) = update(policy, samples, 1e-3)
        figures.append(figures_of(result))
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-5)
    assert figures[0]["sampler_max_gap"] > 0.3  # of those without
