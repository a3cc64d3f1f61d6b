"""Training on samples that share prompts: the gradients are those of each sample alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import make_settings, tiny_model, train_samples
from ttrl_kernels import FusedLMHead

from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.models.attention import PACKED
from ttrl.models.packing import batch_of, pack
from ttrl.types import PackedBatch, TrainSample

PROMPTS = ((9, 8, 7, 6, 5), (4, 3, 2))
SETTINGS = {
    "token level": {},
    "sequence level": {"ratio_level": "sequence"},
    "every term": {"kl_coef": 0.1, "entropy_coef": 0.01},
}


def samples_of_two_prompts() -> list[TrainSample]:
    """Eight answers, one of them of a single token, two the same but for their ends."""
    own = train_samples([(1, n) for n in (6, 1, 4, 9, 3, 3, 7, 8)])
    own[5] = replace(own[5], token_ids=(*own[5].token_ids[:1], *own[3].token_ids[1:3], 0))
    return [
        replace(
            sample,
            token_ids=(*PROMPTS[i % 2], *sample.token_ids[1:]),
            trained=(*(False,) * len(PROMPTS[i % 2]), *sample.trained[1:]),
        )
        for i, sample in enumerate(own)
    ]


def policy_in_float64(kind: str = "opt", **loss: object) -> LocalModel:
    model = tiny_model(kind).double()
    model.set_attn_implementation(PACKED)
    FusedLMHead.replace(model)
    policy = LocalModel(model, make_settings(loss=loss))
    policy.network.products = torch.float64
    if policy.reference is not None:
        policy.reference.products = torch.float64
        with torch.no_grad():
            for parameter in policy.reference.parameters():
                parameter.mul_(1.1)
    return policy


def gradients(
    policy: LocalModel, objective: PolicyObjective, batches: list[PackedBatch]
) -> list[torch.Tensor]:
    """Loss, and gradients of all parameters, summed over the batches."""
    policy.optimizer.zero_grad()
    losses = [objective.loss(policy.network, batch).loss for batch in batches]
    for loss in losses:
        loss.backward()
    total = torch.stack([loss.detach() for loss in losses]).sum()
    return [total, *(p.grad.clone() for p in policy.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("kind", "rounding"),
    [("opt", 1e-12), ("qwen2", 1e-7)],  # the norms of the latter are float32 whatever is asked
)
@pytest.mark.parametrize("loss", SETTINGS)
def test_gradients_are_those_without_sharing(loss: str, kind: str, rounding: float) -> None:
    policy, samples = policy_in_float64(kind, **SETTINGS[loss]), samples_of_two_prompts()
    objective = PolicyObjective.of(policy.settings, policy)
    weights = objective.token_weights(samples)
    (shared,) = pack(samples, weights, 1000)
    beginnings = {s.token_ids[:end] for s in samples for end in range(1, len(s.token_ids))}
    assert len(shared.token_ids_R) == len(beginnings) < sum(len(s.token_ids) - 1 for s in samples)
    alone = [batch_of([s], [w]) for s, w in zip(samples, weights, strict=True)]
    assert all(batch.sequences.keys_K is None for batch in alone)
    ours, theirs = (gradients(policy, objective, batches) for batches in ([shared], alone))
    assert len(ours) == len(theirs)
    assert sum(bool(their.abs().max() > 1e-4) for their in theirs) > 10
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=rounding)


def test_scores_are_those_without_sharing() -> None:
    policy, samples = policy_in_float64(), samples_of_two_prompts()
    together = policy.logprobs(samples)
    for sample, found in zip(samples, together, strict=True):
        (alone,) = policy.logprobs([sample])
        assert found == pytest.approx(alone, abs=1e-12)
