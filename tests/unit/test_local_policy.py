"""The policy update against a slow twin that a reader can check against the papers."""

import copy
import dataclasses
import math
from collections import defaultdict
from statistics import fmean
from typing import Any

import pytest
import torch
from tiny_models import (
    TOKENIZER,
    all_logprobs,
    make_settings,
    saved,
    tiny_model,
    train_samples,
)
from transformers import PreTrainedModel

from ttrl.config import PolicySettings, Settings
from ttrl.policy.local import LocalPolicy, learning_rate
from ttrl.policy.model import load_policy_model
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.transformers_engine import TransformersEngine
from ttrl.types import Question, TrainSample

RATE = 1e-3
TEMPERATURE = 1.3  # that of `make_settings`
MAX_NEW_TOKENS = 16  # likewise

LENGTHS = [(3, 7), (12, 1), (1, 16), (9, 4), (5, 5), (2, 12), (24, 2), (1, 1), (8, 8), (4, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny model, and what loads it."""
    return saved(tiny_model(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder) -> PreTrainedModel:
    return load_policy_model(folder)


def near_samples(model: PreTrainedModel, lengths=LENGTHS, seed: int = 0) -> list[TrainSample]:
    """Samples whose ratios lie between 0.3 and 3, on both sides of every clip."""
    samples = []
    for sample in train_samples(lengths, seed):
        own_n = plain_logprobs(model, sample)[1]
        noise_n = torch.empty(len(own_n)).uniform_(
            -1.1, 1.1, generator=torch.Generator().manual_seed(len(samples))
        )
        samples.append(dataclasses.replace(sample, logprobs=tuple((own_n + noise_n).tolist())))
    return samples


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, sample: TrainSample) -> tuple[torch.Tensor, ...]:
    """([n, V], [n]): log-probs of all tokens, and of the sampled ones, without packing."""
    logp_nV = all_logprobs(plain_twin(model), sample.prompt_ids, sample.completion_ids, TEMPERATURE)
    return logp_nV, at(logp_nV, sample)


def plain_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 copy that knows nothing of packing."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa")
    return twin.double().eval()


def at(values_nV: torch.Tensor, sample: TrainSample) -> torch.Tensor:
    return values_nV.gather(1, torch.tensor(sample.completion_ids).unsqueeze(1)).squeeze(1)


# ---------------------------------------------------------------------------------------------
# The twin


class Twin:
    """GRPO sequence by sequence with all logits, in float64, and torch's AdamW."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        policy = settings.policy
        self.settings = settings
        self.model = plain_twin(model)
        self.reference = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=policy.betas, weight_decay=policy.weight_decay
        )

    def update(self, samples: list[TrainSample], rate: float) -> list[dict[str, float]]:
        size = self.settings.policy.sequences_per_update
        self.optimizer.param_groups[0]["lr"] = rate
        return [self.step(samples[i : i + size]) for i in range(0, len(samples), size)]

    def step(self, samples: list[TrainSample]) -> dict[str, float]:
        policy = self.settings.policy
        figures: dict[str, list[float]] = defaultdict(list)
        self.optimizer.zero_grad()
        loss = sum(self.sequence_loss(sample, samples, figures) for sample in samples)
        loss.backward()
        grads = [p.grad for p in self.model.parameters()]
        norm = math.sqrt(sum(g.square().sum().item() for g in grads))
        for g in grads:
            g *= min(1, policy.grad_clip / norm)
        self.optimizer.step()
        means = {name: fmean(values) for name, values in figures.items() if name != "gap"}
        return {
            **means,
            "loss": loss.item(),
            "grad_norm": norm,
            "sampler_max_gap": max(figures["gap"]),
            "tokens": len(figures["gap"]),
        }

    def sequence_loss(self, sample, samples, figures) -> torch.Tensor:
        policy, n = self.settings.policy, len(sample.completion_ids)
        everything = sum(len(s.completion_ids) for s in samples)
        share = {
            "token_mean": 1 / everything,
            "sequence_mean": 1 / (len(samples) * n),
            "constant": 1 / (len(samples) * MAX_NEW_TOKENS),
        }[policy.aggregation]
        ids = (sample.prompt_ids, sample.completion_ids)
        logp_nV = all_logprobs(self.model, *ids, TEMPERATURE)
        logp_n = at(logp_nV, sample)
        old_n = torch.tensor(sample.logprobs, dtype=torch.float64)
        advantage = sample.advantage

        ratio_n = (logp_n - old_n).exp()
        bounded_n = ratio_n.clamp(1 - policy.clip_low, 1 + policy.clip_high)
        objective_n = torch.minimum(ratio_n * advantage, bounded_n * advantage)
        if policy.dual_clip is not None and advantage < 0:
            objective_n = objective_n.clamp(min=policy.dual_clip * advantage)
        entropy_n = -(logp_nV.exp() * logp_nV).sum(1)
        with torch.no_grad():
            ref_n = at(all_logprobs(self.reference, *ids, TEMPERATURE), sample)
        kl_n = (ref_n - logp_n).exp() - (ref_n - logp_n) - 1

        if advantage != 0 or policy.kl_coef or policy.entropy_coef:  # what UpdateResult covers
            gap_n = (logp_n - old_n).detach()
            figures["clip_fraction"] += (objective_n != ratio_n * advantage).double().tolist()
            figures["kl"] += (kl_n if policy.kl_coef else torch.zeros(n)).tolist()
            figures["entropy"] += entropy_n.tolist()
            figures["sampler_kl"] += (gap_n.exp() - gap_n - 1).tolist()
            figures["gap"] += gap_n.abs().tolist()
        loss_n = -objective_n + policy.kl_coef * kl_n - policy.entropy_coef * entropy_n
        return share * sample.weight * loss_n.sum()


def assert_same_results(results, twins, rel=1e-4):
    assert len(results) == len(twins)
    for result, twin in zip(results, twins, strict=True):
        found = {name: getattr(result, name) for name in twin}
        assert found == pytest.approx(twin, rel=rel, abs=1e-6)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.double() for name, p in model.named_parameters()}


def assert_close_everywhere(ours: dict, theirs: dict, share: float):
    """Off by at most this share of the largest entry of the same tensor."""
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        error = (ours[name].double() - truth).abs().max()
        assert error <= share * truth.abs().max(), name


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changes(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


CASES: dict[str, dict[str, Any]] = {
    "token_mean": {},
    "sequence_mean": {"aggregation": "sequence_mean"},
    "constant": {"aggregation": "constant"},
    "clip-higher": {"clip_low": 0.1, "clip_high": 0.5},
    "dual-clip": {"dual_clip": 1.5},
    "kl": {"kl_coef": 0.5},
    "entropy": {"entropy_coef": 0.3},
    "everything": {"dual_clip": 2.0, "kl_coef": 0.2, "entropy_coef": 0.1, "weight_decay": 0.3},
    "small-batches": {"tokens_per_batch": 40},
    "grad-clip": {"grad_clip": 1e-3},
}


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_the_twin(case, model):
    """Ten sequences in optimizer steps of four, four and two, twice.

    Ours computes in float32, so gradients are compared within 1e-5 of a tensor's largest entry.
    AdamW divides a gradient by its own size, so that an entry that is 1e-5 of the largest becomes
    as large a step as any other, with its float32 error: weights are compared within a share
    of the step, RATE.
    """
    settings = make_settings(policy={"sequences_per_update": 4, "grad_clip": 1e3, **CASES[case]})
    samples = near_samples(model)
    samples[3] = dataclasses.replace(samples[3], weight=2.5)
    policy, twin = LocalPolicy(model, settings), Twin(model, settings)
    for round in range(2):
        results, expected = policy.update(samples, RATE), twin.update(samples, RATE)
        assert_same_results(results, expected)
        assert [r.sequences for r in results] == [4, 4, 2]
        assert {r.learning_rate for r in results} == {RATE}
        if round == 0:
            assert_close_everywhere(gradients(policy.model), gradients(twin.model), 1e-3)
    assert any(0 < r.clip_fraction < 1 for r in results)
    for name, p in policy.model.named_parameters():
        error = (p.detach().double() - twin.model.get_parameter(name)).abs().max()
        assert error < 0.05 * RATE, name
