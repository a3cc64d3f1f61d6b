"""A critic: what its value head computes, its loss against a float64 twin, and adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from groups import estimate, group
from tensors import assert_close_everywhere, gradients
from tiny_models import LENGTHS, make_settings, plain_twin, saved, tiny_model, train_samples
from transformers import PreTrainedModel

from ttrl.credit.gae import Gae, gae
from ttrl.credit.make import make_credit
from ttrl.credit.whitening import whiten
from ttrl.learner.backends import make_second_model
from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.value_objective import ValueObjective
from ttrl.models.packed_model import load_policy_model
from ttrl.models.value_head import ValueHead
from ttrl.settings import ModelSettings, Settings
from ttrl.types import TrainSample, UserError


def ppo_settings(
    start: ModelSettings, critic: dict[str, Any] | None = None, **update: Any
) -> Settings:
    """Settings of a PPO run from that model."""
    model = {"path": start.path, "dtype": start.dtype}
    update = {"grad_clip": 1e3, "sequences_per_update": 10} | update
    return make_settings(update, model=model, reward={"advantages": "gae"}, critic=critic or {})


def critic_of(settings: Settings) -> LocalModel:
    """A critic beside a new policy, with a head that is no longer zero."""
    policy = LocalModel(load_policy_model(settings.model), settings)
    critic = make_second_model(policy, settings.optimizer, value_head=True)
    assert isinstance(critic, LocalModel)
    head = critic.model.get_output_embeddings()
    assert isinstance(head, ValueHead) and not head.weight.any()
    with torch.no_grad():
        noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
        head.weight += 0.3 * noise
    return critic


def plain_values(model: PreTrainedModel, sample: TrainSample) -> torch.Tensor:
    """What the head says of the position before each trained token, by a plain forward."""
    ids_1T = torch.tensor([sample.token_ids])
    hidden_TH = model.base_model(input_ids=ids_1T).last_hidden_state[0]
    before_T = torch.tensor(sample.trained[1:])
    return (hidden_TH[:-1] @ model.get_output_embeddings().weight[0])[before_T]


def expecting(samples: list[TrainSample]) -> list[TrainSample]:
    """Random returns and old values."""
    rng = np.random.default_rng(1)
    return [
        replace(
            s,
            returns=tuple(rng.normal(size=len(s.logprobs)).tolist()),
            values=tuple(rng.normal(size=len(s.logprobs)).tolist()),
        )
        for s in samples
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_values_are_those_of_the_tokens_to_come(tied: bool, tmp_path: Any) -> None:
    start = saved(tiny_model(tie_word_embeddings=tied), tmp_path)
    critic, samples = critic_of(ppo_settings(start, tokens_per_batch=40)), train_samples(LENGTHS)
    twin = plain_twin(critic.model)
    found = critic.per_token(samples, lambda batch: (critic.network(batch),))
    for sample, (values,) in zip(samples, found, strict=True):
        truth = plain_values(twin, sample)
        assert values == pytest.approx(truth.tolist(), rel=1e-4, abs=1e-5)
    assert max(abs(v) for (values,) in found for v in values) > 0.3


@pytest.mark.parametrize("clip", [1e9, 0.5])
@pytest.mark.parametrize("room", [1024, 40])
def test_its_loss_is_half_the_clipped_squared_error(
    saved_model: ModelSettings, clip: float, room: int
) -> None:
    critic = critic_of(ppo_settings(saved_model, tokens_per_batch=room))
    samples, twin = expecting(train_samples(LENGTHS)), plain_twin(critic.model)
    (result,) = critic.update(samples, ValueObjective(clip), rate=0.0)
    losses, clipped = [], 0
    for sample in samples:
        values_n = plain_values(twin, sample)
        for value, old, to_come in zip(values_n, sample.values, sample.returns, strict=True):
            error = (value - to_come) ** 2
            held = old + torch.clamp(value - old, -clip, clip)
            clipped += int((held - to_come) ** 2 > error * (1 + 1e-9))
            error = torch.maximum(error, (held - to_come) ** 2)
            losses.append(error / 2)
    truth = torch.stack(losses).mean()
    truth.backward()
    assert result.loss == pytest.approx(truth.item(), rel=1e-5)
    assert result.means["clip_fraction"] == pytest.approx(clipped / len(losses))
    assert (clip == 1e9) == (clipped == 0)
    found = {n: g for n, g in gradients(critic.model).items() if n != "lm_head.weight"}
    expected = {n: g for n, g in gradients(twin).items() if n != "lm_head.weight"}
    assert_close_everywhere(found, expected, 2e-5)
    head, true_head = (m.get_output_embeddings().weight.grad for m in (critic.model, twin))
    assert (head.double() - true_head).abs().max() <= 2e-5 * true_head.abs().max()


def test_a_step_of_ppo_is_the_equations(saved_model: ModelSettings) -> None:
    """Values before the critic's update, reward on the last token, whitened over all tokens."""
    settings = ppo_settings(saved_model, {"gae_lambda": 0.9, "gamma": 0.97}, trained_samples=3)
    policy = LocalModel(load_policy_model(saved_model), settings)
    credit = make_credit(settings, policy)
    assert isinstance(credit, Gae)
    with torch.no_grad():
        credit.critic.model.get_output_embeddings().weight.fill_(0.05)
    voted = [group("7", "8", "7", "7"), group("5", "5", "4", "5", id="q2")]
    values = []

    def kept(samples: list[TrainSample]) -> list[tuple[float, ...]]:
        values[:] = Gae.values(credit, samples)
        return values

    credit.values = kept  # type: ignore[method-assign,assignment]
    assigned = credit.assign(voted, [estimate(g) for g in voted], step=1)
    rewards = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    raw, returns = [], []
    for reward, v in zip(rewards, values, strict=True):
        a, r = gae((*[0.0] * (len(v) - 1), reward), v, 0.97, 0.9)
        raw.append(a)
        returns += r
    flat = np.array([x for tokens in raw for x in tokens])
    mean, spread = flat.mean(), np.sqrt(flat.var(ddof=1) + 1e-8)
    for sample, tokens in zip(assigned.samples, raw, strict=True):
        assert sample.advantages == pytest.approx((np.array(tokens) - mean) / spread)
        assert sample.returns is None
    assert assigned.chosen == [[0, 1, 2], [0, 1, 2]]
    assert assigned.metrics["critic/return_mean"] == pytest.approx(np.mean(returns))
    (critic,) = assigned.updates["critic"]
    assert critic.sequences == 6 and critic.tokens == 12
    assert credit.critic.steps_taken == 1 and policy.steps_taken == 0
    assert Gae.values(credit, assigned.samples) != values


def test_the_critic_may_learn_alone_at_first(saved_model: ModelSettings) -> None:
    settings = ppo_settings(saved_model, {"warmup_steps": 2})
    credit = make_credit(settings, LocalModel(load_policy_model(saved_model), settings))
    voted = [group("7", "8", "7", "7")]
    for step, samples in ((1, 0), (2, 0), (3, 4)):
        assigned = credit.assign(voted, [estimate(g) for g in voted], step)
        assert len(assigned.samples) == len(assigned.chosen[0]) == samples
        assert len(assigned.updates["critic"]) == 1


def test_an_estimator_with_advantages_of_its_own_is_refused(saved_model: ModelSettings) -> None:
    settings = ppo_settings(saved_model)
    credit = make_credit(settings, LocalModel(load_policy_model(saved_model), settings))
    voted = group("7", "8", "7", "7")
    own = replace(estimate(voted), advantages_G=(1.0, -1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="says itself what an answer is worth"):
        credit.assign([voted], [own], step=1)


def test_with_adapters_both_models_have_one_base(saved_model: ModelSettings) -> None:
    """The same tensors, not copies; each has adapters of its own, and the critic a whole head."""
    settings = ppo_settings(saved_model, lora_rank=3)
    policy = LocalModel(load_policy_model(saved_model), settings)
    critic = make_second_model(policy, settings.optimizer, value_head=True)
    base = {n: p for n, p in policy.model.named_parameters() if not p.requires_grad}
    own = dict(critic.model.named_parameters())
    shared = [n for n, p in base.items() if own.get(n) is p]
    assert set(base) - set(shared) == {"lm_head.weight"}
    trained = {n for n, p in own.items() if p.requires_grad}
    assert trained == {n for n in own if "lora_" in n} | {"lm_head.weight"}
    assert not any(own[n] is p for n, p in policy.model.named_parameters() if "lora_" in n)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    samples = expecting(train_samples(LENGTHS))
    critic.update(samples, ValueObjective(0.5), rate=1e-2)
    critic.update(samples, ValueObjective(0.5), rate=1e-2)  # behind a head that is not zero now
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    assert all(p.grad is not None and p.grad.any() for n, p in own.items() if "lora_B" in n)


def test_several_epochs_pass_over_the_same_samples(saved_model: ModelSettings) -> None:
    """As many steps more, each from the weights before; old log-probs are those before them all."""
    settings = ppo_settings(saved_model, epochs_per_rollout=3, old_logprobs="policy")
    once = ppo_settings(saved_model)
    samples = train_samples(LENGTHS)
    policy = LocalModel(load_policy_model(saved_model), settings)
    scored: list[int] = []
    score = policy.score

    def counted(asked: list[TrainSample]) -> Any:
        scored.append(len(asked))
        return score(asked)

    policy.score = counted  # type: ignore[method-assign,assignment]
    results = policy.update(samples, PolicyObjective.of(settings, policy), rate=1e-3)
    assert len(results) == 3 and policy.steps_taken == 3
    assert scored == [10]  # once each
    assert results[0].means["clip_fraction"] == 0.0 < results[2].means["clip_fraction"]
    other = LocalModel(load_policy_model(saved_model), once)
    (alone,) = other.update(samples, PolicyObjective.of(settings, other), rate=1e-3)
    assert alone.loss == results[0].loss


def test_questions_of_weight_0_train_nothing(saved_model: ModelSettings) -> None:
    settings = ppo_settings(saved_model)
    credit = make_credit(settings, LocalModel(load_policy_model(saved_model), settings))
    voted = [group("7", "8", "7", "7"), group("5", "5", "4", "5", id="q2")]
    weights = (0.0, 0.5)
    estimates = [
        replace(estimate(g), weight=weight) for g, weight in zip(voted, weights, strict=True)
    ]
    assigned = credit.assign(voted, estimates, step=1)
    assert [s.question_id for s in assigned.samples] == ["q2"] * 4
    assert assigned.chosen == [[], [0, 1, 2, 3]]
    assert assigned.updates["critic"][0].sequences == 4
    nothing = credit.assign(voted[:1], estimates[:1], step=2)
    assert (nothing.samples, nothing.chosen, nothing.updates) == ([], [[]], {})


def test_a_lambda_of_the_lengths_is_that_of_the_policy_alone(saved_model: ModelSettings) -> None:
    """VAPO: the critic's returns have λ = 1, and with γ = 1 are the outcome at every token."""
    settings = ppo_settings(saved_model, {"length_adaptive": 0.6})
    credit = make_credit(settings, LocalModel(load_policy_model(saved_model), settings))
    assert isinstance(credit, Gae)
    with torch.no_grad():
        credit.critic.model.get_output_embeddings().weight.fill_(0.05)
    voted = [group("7", "8", "7", "7")]
    values = credit.values(credit.assign(voted, [estimate(voted[0])], step=1).samples)
    expected: list[TrainSample] = []
    update = credit.critic.update

    def kept(samples: list[TrainSample], *rest: Any) -> Any:
        expected.extend(samples)
        return update(samples, *rest)

    credit.critic.update = kept  # type: ignore[method-assign,assignment]
    assigned = credit.assign(voted, [estimate(voted[0])], step=2)
    for sample, reward in zip(expected, (1.0, 0.0, 1.0, 1.0), strict=True):
        assert sample.returns == pytest.approx([reward] * len(sample.logprobs))
    raw = [
        gae((*[0.0] * (len(v) - 1), r), v, 1.0, max(0.0, 1 - 1 / (0.6 * len(v))))[0]
        for v, r in zip(values, (1.0, 0.0, 1.0, 1.0), strict=True)
    ]
    for sample, tokens in zip(assigned.samples, whiten(raw), strict=True):
        assert sample.advantages == pytest.approx(tokens, rel=1e-3, abs=1e-4)


def test_what_is_not_finite_names_the_model_s_own_rate(saved_model: ModelSettings) -> None:
    settings = ppo_settings(saved_model)
    credit = make_credit(settings, LocalModel(load_policy_model(saved_model), settings))
    samples = expecting(train_samples(LENGTHS))
    bad = [replace(samples[0], returns=(float("nan"),) * 7), *samples[1:]]
    with pytest.raises(FloatingPointError, match="question 'q0' has 7 of 7 returns nan"):
        credit.models["critic"].update(bad, ValueObjective(0.5), 1e-3)
    huge = [replace(s, returns=(3e38,) * len(s.logprobs)) for s in samples]
    with pytest.raises(FloatingPointError, match=r"lower critic\.learning_rate"):
        credit.models["critic"].update(huge, ValueObjective(0.5), 1e-3)


def test_gradients_do_not_wait_beside_the_other_model(saved_model: ModelSettings) -> None:
    settings = ppo_settings(saved_model)
    credit = make_credit(settings, LocalModel(load_policy_model(saved_model), settings))
    credit.assign([group("7", "8", "7", "7")], [estimate(group("7", "8", "7", "7"))], step=1)
    assert all(p.grad is None for p in credit.models["critic"].model.parameters())
