"""Old log-probs and the sampler's mismatch: the corrected loss against a float64 twin."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from step_twin import sampler_factors
from tiny_models import (
    TEMPERATURE,
    all_logprobs,
    answer_of,
    at,
    figures_of,
    make_settings,
    near_samples,
    plain_twin,
    prompt_of,
    update,
    worth,
)
from transformers import PreTrainedModel

from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.settings import LossSettings, ModelSettings, Settings
from ttrl.types import TrainSample

RATE = 3e-3
CAP = 1.5


@pytest.fixture(scope="module")
def samples(saved_model: ModelSettings) -> list[TrainSample]:
    """A sampler that is off by up to 1.1 nats per token, on both sides of the cap."""
    return near_samples(load_policy_model(saved_model), off=1.1)[:8]


def settings_with(**policy: Any) -> Settings:
    """Two optimizer steps of four sequences, on the policy's own old log-probs."""
    common = {"old_logprobs": "policy", "sampler_ratio_cap": CAP, "sequences_per_update": 4}
    return make_settings(update={**common, "grad_clip": 1e3, **policy})


class Twin:
    """Sequence by sequence, with all logits, in float64."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        self.loss = settings.loss
        self.model = plain_twin(model)
        self.start = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.01)

    def logprobs(self, model: PreTrainedModel, sample: TrainSample) -> torch.Tensor:
        ids = prompt_of(sample), answer_of(sample)
        return at(all_logprobs(model, *ids, TEMPERATURE), answer_of(sample))

    def step(self, samples: list[TrainSample]) -> dict[str, float]:
        self.optimizer.zero_grad()
        tokens = sum(len(answer_of(s)) for s in samples)
        losses, gaps = [], []
        with torch.no_grad():
            own = [self.logprobs(self.start, s) for s in samples]
        gaps_S = [
            (own_n - torch.tensor(s.logprobs, dtype=torch.float64)).tolist()
            for own_n, s in zip(own, samples, strict=True)
        ]
        factors, changed, dropped = sampler_factors(gaps_S, self.loss)
        for sample, start_n, factor_n in zip(samples, own, factors, strict=True):
            sampler_n = torch.tensor(sample.logprobs, dtype=torch.float64)
            logp_n, weight_n = self.logprobs(self.model, sample), torch.tensor(factor_n)
            ratio_n, a = (logp_n - start_n).exp(), sample.advantages[0]
            bounded_n = ratio_n.clamp(1 - self.loss.clip_low, 1 + self.loss.clip_high)
            objective_n = weight_n * torch.minimum(ratio_n * a, bounded_n * a)
            gap_n = start_n - logp_n
            kl_n = gap_n.exp() - gap_n - 1
            losses.append((-objective_n + self.loss.kl_coef * kl_n).sum() / tokens)
            gaps.append((logp_n - sampler_n).detach())
        loss = torch.stack(losses).sum()
        loss.backward()
        self.optimizer.step()
        gap_T = torch.cat(gaps)
        return {
            "loss": loss.item(),
            "corrected": changed,
            "rejected": dropped,
            "sampler_log_ratio": gap_T.mean().item(),
            "sampler_kl": (gap_T.exp() - gap_T - 1).mean().item(),
            "sampler_max_gap": gap_T.abs().max().item(),
        }


CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "truncate": {"sampler_correction": "truncate"},
    "mask": {"sampler_correction": "mask"},
    "mask-floor": {"sampler_correction": "mask", "sampler_ratio_floor": 0.55},
    "mask-no-floor": {"sampler_correction": "mask", "sampler_ratio_floor": 0.0},
    "product": {"sampler_correction": "truncate", "sampler_level": "sequence_product"},
    "geometric": {
        "sampler_correction": "mask",
        "sampler_level": "sequence_geometric",
        "sampler_ratio_cap": 1.25,
    },
    "normalized": {"sampler_correction": "truncate", "sampler_normalize": True},
    "normalized-product": {
        "sampler_correction": "truncate",
        "sampler_level": "sequence_product",
        "sampler_normalize": True,
    },
    "rejected": {"sampler_rejection": "token", "sampler_rejection_bound": 0.2},
    "rejected-sequences": {
        "sampler_correction": "truncate",
        "sampler_rejection": "sequence_mean",
        "sampler_rejection_kl": "k1",
        "sampler_rejection_bound": 0.15,
    },
}


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_corrected_updates_are_those_of_the_twin(
    correction: str, kl_coef: float, saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    """The second step has moved away from the old log-probs; its gradient is the one compared."""
    settings = settings_with(kl_coef=kl_coef, **CORRECTIONS[correction])
    model = load_policy_model(saved_model)
    twin, policy = Twin(model, settings), LocalModel(model, settings)
    expected = [twin.step(samples[:4]), twin.step(samples[4:])]
    results = update(policy, samples, RATE)
    for result, truth in zip(results, expected, strict=True):
        assert {k: figures_of(result)[k] for k in truth} == pytest.approx(truth, rel=1e-3, abs=1e-5)
    assert results[0].means["clip_fraction"] == 0
    if correction == "none":
        assert results[1].means["clip_fraction"] > 0
    for name, p in twin.model.named_parameters():
        error = (policy.model.get_parameter(name).grad - p.grad).abs().max()
        assert error <= 1e-3 * p.grad.abs().max(), name
    for setting, figure in (("sampler_correction", "corrected"), ("sampler_rejection", "rejected")):
        acts = setting in CORRECTIONS[correction]
        assert any(0.1 < r.means[figure] < 0.9 for r in results) == acts


def gradients(start: ModelSettings, samples: list[TrainSample], **policy: Any) -> torch.Tensor:
    """Of one optimizer step."""
    settings = settings_with(sequences_per_update=8, **policy)
    made = LocalModel(load_policy_model(start), settings)
    update(made, samples, RATE)
    return torch.cat([p.grad.flatten() for p in made.model.parameters()])


def test_on_the_policys_own_log_probs_the_sampler_does_not_matter(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    others = [dataclasses.replace(s, logprobs=tuple(x - 1 for x in s.logprobs)) for s in samples]
    own, other = gradients(saved_model, samples), gradients(saved_model, others)
    assert torch.equal(own, other)
    with_sampler = [gradients(saved_model, s, old_logprobs="sampler") for s in (samples, others)]
    assert not torch.allclose(*with_sampler)


def test_a_weight_that_is_never_capped_is_the_ratio_against_the_sampler(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    """Where nothing is clipped either: both are policy / sampler, times the gradient of logp."""
    weighted = gradients(saved_model, samples, sampler_correction="truncate", sampler_ratio_cap=1e3)
    wide = {"clip_low": 0.99, "clip_high": 1e3}
    plain = gradients(saved_model, samples, old_logprobs="sampler", **wide)
    assert (weighted - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        ({"old_logprobs": "sampler"}, 2),
        ({}, 3),  # the second step's old log-probs
        ({"sampler_correction": "mask"}, 3),  # both steps', in one pass
        ({"sampler_rejection": "token", "sampler_rejection_bound": 0.2}, 3),
        ({"entropy_mask": 0.2, "old_logprobs": "sampler"}, 3),
        ({"off_policy_mask": 0.2, "old_logprobs": "sampler"}, 2),
        ({"sequences_per_update": 8}, 1),
        ({"sequences_per_update": 8, "sampler_correction": "mask"}, 2),
    ],
)
def test_forward_passes(
    policy: dict[str, Any], passes: int, saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    made, calls = LocalModel(load_policy_model(saved_model), settings_with(**policy)), []
    made.model.get_input_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
    update(made, samples, RATE)
    assert len(calls) == passes


def test_steps_that_are_not_taken_cost_no_pass(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    """The first step has no gradient: the second is the first that moves anything."""
    idle = [worth(s, 0.0) for s in samples[:4]]
    made, calls = LocalModel(load_policy_model(saved_model), settings_with()), []
    made.model.get_input_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
    (result,) = update(made, [*idle, *samples[4:]], RATE)
    assert (len(calls), result.means["clip_fraction"]) == (1, 0)


@pytest.mark.parametrize("correction", ["mask", "normalized-product", "rejected-sequences"])
def test_micro_batches_do_not_change_a_correction(
    correction: str, saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    whole, split = (
        gradients(saved_model, samples, tokens_per_batch=room, **CORRECTIONS[correction])
        for room in (1024, 40)
    )
    assert (whole - split).abs().max() < 1e-5 * whole.abs().max()


def test_what_is_dropped_is_measured(
    saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    """Sequences without a policy term still say how far the engine is from the policy."""
    found = []
    for changes in ({}, {"sampler_rejection": "sequence_max", "sampler_rejection_bound": 0.3}):
        made = LocalModel(load_policy_model(saved_model), settings_with(**changes))
        found.append(update(made, samples[:4], RATE)[0])
    plain, dropping = found
    assert dropping.means["rejected"] > 0.5
    assert dropping.grad_norm < plain.grad_norm
    for name in ("sampler_kl", "sampler_log_ratio"):
        assert dropping.means[name] == plain.means[name]
    assert dropping.largest == plain.largest


def test_a_correction_needs_the_policys_own_log_probs() -> None:
    with pytest.raises(ValueError, match=r'= "truncate" needs loss.old_logprobs = "policy"'):
        make_settings(update={"sampler_correction": "truncate"})
    assert LossSettings().sampler_correction == "none"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logprobs": (-1.0, math.nan)}, "question 'q6' has 1 of 2 sampler log-probs nan"),
        ({"logprobs": (-math.inf, math.nan)}, "question 'q6' has 2 of 2 sampler log-probs -inf"),
        ({"advantages": (math.nan,)}, "question 'q6' has 1 of 1 advantages nan"),
    ],
)
def test_bad_numbers_are_named(
    change: dict[str, Any], words: str, saved_model: ModelSettings, samples: list[TrainSample]
) -> None:
    made = LocalModel(load_policy_model(saved_model), settings_with(old_logprobs="sampler"))
    before = made.shards()
    bad = [*samples[:6], dataclasses.replace(samples[6], **change), samples[7]]
    with pytest.raises(FloatingPointError, match=words):
        update(made, bad[4:], RATE)
    assert all(torch.equal(t, made.shards()[n]) for n, t in before.items())
