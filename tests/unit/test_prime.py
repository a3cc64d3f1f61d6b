"""Implicit process rewards, by hand; their reward model against a float64 twin."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensors import assert_close_everywhere, gradients
from tiny_models import (
    LENGTHS,
    all_logprobs,
    answer_of,
    at,
    make_settings,
    plain_twin,
    prompt_of,
    train_samples,
)

from ttrl.credit.outcomes import Outcomes
from ttrl.credit.prime import (
    Prime,
    health,
    leave_one_out,
    normalized,
    process_rewards,
    refuse_other_outcomes,
    to_the_end,
)
from ttrl.learner.backends import make_second_model
from ttrl.learner.implicit_reward_objective import ImplicitRewardObjective
from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.settings import ModelSettings, PrimeSettings, Settings
from ttrl.types import TrainSample, UserError

BETA = 0.5


def test_all_tokens_but_the_last_earn_their_log_ratio() -> None:
    assert process_rewards([(0.2, -0.4, 9.0), (5.0,)], 0.5) == [(0.1, -0.2, 0.0), (0.0,)]


def test_rewards_are_divided_by_the_largest_sum_to_the_end() -> None:
    """Sums: 0.1, −0.2, 0 and 0.3, 0.1: the largest is 0.3."""
    assert to_the_end((0.3, -0.2, 0.0)) == pytest.approx((0.1, -0.2, 0.0))
    found = normalized([(0.3, -0.2, 0.0), (0.2, 0.1)])
    assert found[0] == pytest.approx((0.3 / 0.300001, -0.2 / 0.300001, 0.0))
    assert found[1] == pytest.approx((0.2 / 0.300001, 0.1 / 0.300001))


def test_each_sample_is_compared_with_the_others_twice() -> None:
    """n = 3; the samples' mean process rewards are 0.2, 0 and 0.1: 0.3 in all."""
    prime = PrimeSettings(process_coef=2.0, outcome_coef=5.0)
    found = leave_one_out([(0.4, 0.0), (0.0,), (0.1, 0.2, 0.0)], (1.0, 0.0, 1.0), prime)
    assert found[0] == pytest.approx((2 * (1.2 - 0.3) / 2, 2 * -0.3 / 2 + 5 * (3 - 2) / 2))
    assert found[1] == pytest.approx((2 * -0.3 / 2 + 5 * (0 - 2) / 2,))
    assert found[2] == pytest.approx((0.0, 2 * (0.6 - 0.3) / 2, -0.3 + 2.5))
    assert leave_one_out([(0.4, 0.3)], (1.0,), prime) == [(0.0, 0.0)]


def test_health_is_about_sums_of_log_ratios() -> None:
    """Sums 1, −1, 2 and 3, 3: of 2 + 1 pairs 1 is right, 1 wrong and 1 a tie."""
    samples = train_samples([(1, 1)] * 5)
    found = Outcomes(samples, [1.0, 0.0, 0.0, 1.0, 0.0], [[0, 1, 2], [0, 1]], [None] * 5)
    metrics = health([(0.5, 0.5), (-1.0,), (2.0,), (3.0,), (3.0,)], found)
    assert metrics["prm/rank_accuracy"] == pytest.approx(1.5 / 3)
    assert metrics["prm/sign_accuracy"] == pytest.approx(3 / 5)
    assert metrics["prm/log_ratio_sum"] == pytest.approx(8 / 5)
    alike = Outcomes(samples[:2], [1.0, 1.0], [[0, 1]], [None] * 2)
    assert "prm/rank_accuracy" not in health([(1.0,), (2.0,)], alike)


def test_an_outcome_is_a_probability() -> None:
    found = Outcomes(train_samples([(1, 1)]), [-1.0], [[0]], [None])
    with pytest.raises(UserError, match="estimator = 'scrl' paid -1, expected 0 to 1"):
        refuse_other_outcomes(found, "scrl")


def prime_settings(start: ModelSettings, prime: dict[str, Any], **update: Any) -> Settings:
    """Settings of a run with implicit rewards, from that model."""
    model = {"path": start.path, "dtype": "float32"}
    return make_settings(update, model=model, reward={"advantages": "prime"}, prime=prime)


def learners() -> list[TrainSample]:
    """Ten samples; every third one agrees with the vote."""
    return [
        replace(s, returns=(float(i % 3 == 0),) * len(s.logprobs))
        for i, s in enumerate(train_samples(LENGTHS))
    ]


def moved(start: ModelSettings) -> LocalModel:
    """A reward model that is no longer where it started."""
    settings = make_settings({"grad_clip": 1e3, "sequences_per_update": 10})
    model = load_policy_model(start)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter += 0.02 * noise
    return LocalModel(model, settings)


@pytest.mark.parametrize("room", [1024, 40])
def test_its_loss_is_the_cross_entropy_of_the_outcomes(
    saved_model: ModelSettings, room: int
) -> None:
    """Loss and every gradient, in one micro-batch and in many; by autograd with all logits."""
    model, samples = moved(saved_model), learners()
    model.settings = make_settings(
        {"grad_clip": 1e3, "sequences_per_update": 10, "tokens_per_batch": room}
    )
    twin, start = plain_twin(model.model), plain_twin(load_policy_model(saved_model))
    policy = LocalModel(load_policy_model(saved_model), make_settings({"kl_coef": 0.1}))
    objective = ImplicitRewardObjective(BETA, lambda batch: policy.reference_logp(batch, 1.0))
    (result,) = model.update(samples, objective, rate=0.0)

    losses = []
    for sample in samples:
        ids = prompt_of(sample), answer_of(sample)
        own_n = at(all_logprobs(twin, *ids, 1.0), answer_of(sample))
        with torch.no_grad():
            start_n = at(all_logprobs(start, *ids, 1.0), answer_of(sample))
        agrees = torch.sigmoid(BETA * (own_n - start_n).sum())
        losses.append(-torch.log(agrees if sample.returns[0] else 1 - agrees))
    truth = torch.stack(losses).mean()
    truth.backward()
    assert result.loss == pytest.approx(truth.item(), rel=1e-5)
    assert_close_everywhere(gradients(model.model), gradients(twin), 2e-5)


@pytest.mark.parametrize("update", ["after", "before", "none"])
def test_when_it_learns(saved_model: ModelSettings, update: str) -> None:
    """after: an optimizer step's samples are scored before it. before: all after all of them."""
    prime = {"update": update, "learning_rate": 1e-2, "beta": BETA}
    settings = prime_settings(saved_model, prime, sequences_per_update=4, grad_clip=1e3)
    policy = LocalModel(load_policy_model(saved_model), settings)
    prm = make_second_model(policy, settings.optimizer)
    credit = Prime(settings, policy, prm)
    samples = learners()
    ratios, updates = credit._scored_and_learned(samples)
    largest = [max(abs(q) for q in tokens) for tokens in ratios]
    assert len(updates) == (0 if update == "none" else 3)
    if update == "before":
        assert min(largest) > 1e-3
        expected = credit._log_ratios(samples)  # at the weights that it has now
        assert ratios == expected
    else:
        assert max(largest[:4]) == 0.0  # the reward model starts as the reference
        assert (min(largest[4:]) > 1e-3) == (update == "after")


def test_it_learns_whom_to_like(saved_model: ModelSettings) -> None:
    settings = prime_settings(saved_model, {}, sequences_per_update=10, grad_clip=1e3)
    policy = LocalModel(load_policy_model(saved_model), settings)
    prm = make_second_model(policy, settings.optimizer)
    credit, samples = Prime(settings, policy, prm), learners()
    losses = []
    for _ in range(8):
        (result,) = prm.update(samples, credit.objective, rate=3e-3)
        losses.append(result.loss)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.4
    sums = [math.fsum(q) for q in credit._log_ratios(samples)]
    agreeing = [q for q, s in zip(sums, samples, strict=True) if s.returns[0]]
    others = [q for q, s in zip(sums, samples, strict=True) if not s.returns[0]]
    assert min(agreeing) > max(others)


def test_the_policy_is_left_alone(saved_model: ModelSettings) -> None:
    settings = prime_settings(saved_model, {"learning_rate": 1e-2})
    policy = LocalModel(load_policy_model(saved_model), settings)
    credit = Prime(settings, policy, make_second_model(policy, settings.optimizer))
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    credit._scored_and_learned(learners())
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    assert policy.steps_taken == 0 and credit.prm.steps_taken > 0
