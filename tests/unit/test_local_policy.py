"""The policy update against a slow twin that a reader can check against the papers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_twin import Twin
from tensors import assert_close_everywhere, assert_equal_to_the_bit, gradients, weights
from tiny_models import (
    MAX_NEW_TOKENS,
    TEMPERATURE,
    TOKENIZER,
    figures_of,
    make_settings,
    near_samples,
    saved,
    tiny_model,
    train_samples,
    update,
    worth,
)
from transformers import PreTrainedModel

from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.models.packed_model import load_policy_model
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import ModelSettings
from ttrl.types import Question, TrainSample, UpdateResult

RATE = 3e-4


def assert_same_results(results: list[UpdateResult], twins: list[dict[str, float]]) -> None:
    """Within float32 rounding; the loss is a small difference of its terms, hence ``abs``."""
    assert len(results) == len(twins)
    for result, twin in zip(results, twins, strict=True):
        found = {name: figures_of(result)[name] for name in twin}
        assert found == pytest.approx(twin, rel=1e-4, abs=1e-5)


CASES: dict[str, dict[str, Any]] = {
    "token_mean": {},
    "sequence_mean": {"aggregation": "sequence_mean"},
    "constant": {"aggregation": "constant"},
    "clip-higher": {"clip_low": 0.1, "clip_high": 0.5},
    "dual-clip": {"dual_clip": 1.5},
    "kl": {"kl_coef": 0.5},
    "k1": {"kl_coef": 0.5, "kl_estimator": "k1"},
    "k2": {"kl_coef": 0.5, "kl_estimator": "k2"},
    "abs": {"kl_coef": 0.5, "kl_estimator": "abs+"},
    "k3-corrected": {"kl_coef": 0.5, "kl_estimator": "k3+", "kl_bias_correction": True},
    "cispo": {"loss_policy": "cispo"},
    "cispo-one-bound": {"loss_policy": "cispo", "clip_low": 1.0, "clip_high": 1.0},
    "gmpo": {"loss_policy": "gmpo", "aggregation": "sequence_mean"},
    "dppo-tv": {"loss_policy": "dppo_tv", "clip_low": 1e-4, "clip_high": 1e-4},
    "dppo-kl": {"loss_policy": "dppo_kl", "clip_low": 3e-5, "clip_high": 3e-5},
    "off-policy": {"off_policy_mask": 0.1, "tokens_per_batch": 40},
    "entropy-mask": {"entropy_mask": 0.3, "kl_coef": 0.1},
    "entropy-mask-gmpo": {"loss_policy": "gmpo", "entropy_mask": 0.5, "tokens_per_batch": 40},
    "kl-cov": {"loss_policy": "none", "covariance": "kl", "covariance_share": 0.1},
    "clip-cov": {"covariance": "clip", "covariance_share": 1.0, "covariance_bounds": [0.2, 2.0]},
    "adaptive-entropy": {"entropy_target": 10.0, "entropy_coef_step": 0.2},
    "gspo": {"ratio_level": "sequence", "clip_low": 0.01, "clip_high": 0.01},
    "cispo-of-sequences": {"loss_policy": "cispo", "ratio_level": "sequence"},
    "no-clip": {"loss_policy": "none", "aggregation": "sequence_mean"},
    "entropy": {"entropy_coef": 0.3},
    "everything": {"dual_clip": 2.0, "kl_coef": 0.2, "entropy_coef": 0.1, "weight_decay": 0.3},
    "small-batches": {"tokens_per_batch": 40},
    "grad-clip": {"grad_clip": 1e-3},
}


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_the_twin(case: str, model: PreTrainedModel) -> None:
    """Ten sequences in optimizer steps of four, four and two, twice over.

    Ours computes in float32: gradients are off by 1e-5 of a tensor's largest entry. AdamW divides
    each entry by its own size, so that the smallest, which are mostly rounding, make as large a
    step as any other: weights are compared within a share of one step.
    """
    settings = make_settings(update={"sequences_per_update": 4, "grad_clip": 1e3, **CASES[case]})
    samples = near_samples(model)
    samples[3] = dataclasses.replace(samples[3], weight=2.5)
    policy, twin = LocalModel(model, settings), Twin(model, settings)
    objective = PolicyObjective.of(settings, policy)
    for _ in range(2):
        results = policy.update(samples, objective, RATE)
        assert_same_results(results, twin.update(samples, RATE))
        assert_close_everywhere(gradients(policy.model), gradients(twin.model), 1e-4)
        assert [r.sequences for r in results] == [4, 4, 2]
        assert {r.learning_rate for r in results} == {RATE}
        clips = settings.loss.policy != "none"
        assert any(0 < r.means["clip_fraction"] < 1 for r in results) == clips
    for name, p in policy.model.named_parameters():
        error = (p.detach() - twin.model.get_parameter(name)).abs()
        # AdamW makes a step of what is mostly rounding, too.
        mean = policy.optimizer.state[p]["exp_avg"].abs()
        assert error[mean > 1e-3 * mean.max()].max() < 0.05 * RATE, name
        assert error.max() <= 2 * policy.steps_taken * RATE, name


# ---------------------------------------------------------------------------------------------
# What must not matter


@pytest.mark.parametrize("tokens_per_batch", [40, 61, 200])
def test_micro_batches_change_nothing_but_rounding(
    tokens_per_batch: int, saved_model: ModelSettings
) -> None:
    """The sum of gradients is the same, in another order of float32 additions."""
    samples = near_samples(load_policy_model(saved_model))
    found = {}
    for budget in (1024, tokens_per_batch):
        policy = LocalModel(
            load_policy_model(saved_model),
            make_settings(update={"tokens_per_batch": budget, "kl_coef": 0.1}),
        )
        (result,) = update(policy, samples, RATE)
        found[budget] = (gradients(policy.model), figures_of(result))
    (one_grads, one), (split_grads, split) = found.values()
    assert_close_everywhere(split_grads, one_grads, 1e-5)
    assert split == pytest.approx(one, rel=1e-5, abs=1e-6)


def test_an_update_is_repeatable_to_the_bit(saved_model: ModelSettings) -> None:
    samples = near_samples(load_policy_model(saved_model))
    runs = []
    for _ in range(2):
        policy = LocalModel(load_policy_model(saved_model), make_settings())
        update(policy, samples, RATE)
        runs.append(weights(policy.model))
    assert_equal_to_the_bit(*runs)


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(
    saved_model: ModelSettings,
) -> None:
    samples = near_samples(load_policy_model(saved_model))
    found, forwards = [], []
    for policy_settings in (
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "recompute_share": 0.5},  # of two layers, the first
    ):
        policy = LocalModel(
            load_policy_model(saved_model),
            make_settings(update={"kl_coef": 0.1, **policy_settings}),
        )
        calls = [0, 0]
        for i, layer in enumerate(policy.model.model.layers):

            def count(*_: Any, i: int = i, calls: list[int] = calls) -> None:
                calls[i] += 1

            layer.mlp.register_forward_pre_hook(count)
        update(policy, samples, RATE)
        found.append(gradients(policy.model))
        forwards.append(calls)
    assert forwards == [[1, 1], [2, 2], [2, 1]]
    assert_close_everywhere(found[1], found[0], 1e-6)
    assert_close_everywhere(found[2], found[0], 1e-6)


# ---------------------------------------------------------------------------------------------
# Sequences without a gradient


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("nothing", ["advantages", "weight"])
def test_sequences_without_a_gradient_are_counted_but_not_computed(
    aggregation: str, nothing: str, model: PreTrainedModel
) -> None:
    settings = make_settings(update={"aggregation": aggregation, "grad_clip": 1e3})
    samples = near_samples(model)
    for i in (0, 4, 9):
        samples[i] = (
            worth(samples[i], 0.0)
            if nothing == "advantages"
            else dataclasses.replace(samples[i], weight=0.0)
        )
    policy, twin = LocalModel(model, settings), Twin(model, settings)
    rows = 0

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        rows += args[0].shape[1]

    policy.model.get_input_embeddings().register_forward_pre_hook(count)
    (result,) = update(policy, samples, RATE)
    (expected,) = twin.update(samples, RATE)
    assert result.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert_close_everywhere(gradients(policy.model), gradients(twin.model), 1e-4)
    live = [sample for i, sample in enumerate(samples) if i not in (0, 4, 9)]
    assert rows == len({s.token_ids[:end] for s in live for end in range(1, len(s.token_ids))})
    assert result.tokens == sum(len(s.logprobs) for s in live)
    assert (result.sequences, result.skipped_sequences) == (7, 3)


def test_optimizer_steps_without_any_gradient_are_not_taken(model: PreTrainedModel) -> None:
    """Not even with momentum and weight decay, which would move the weights."""
    policy = LocalModel(model, make_settings(update={"sequences_per_update": 5}))
    samples = near_samples(model)
    idle = [worth(s, 0.0) for s in samples]
    assert len(update(policy, [*idle[:5], *samples[5:]], RATE)) == 1
    before = weights(policy.model)
    assert update(policy, idle, RATE) == []
    assert update(policy, [], RATE) == []
    assert_equal_to_the_bit(weights(policy.model), before)


@pytest.mark.parametrize("term", ["kl_coef", "entropy_coef"])
def test_with_a_kl_or_entropy_term_zero_advantages_are_trained_on(
    term: str, model: PreTrainedModel
) -> None:
    policy = LocalModel(model, make_settings(update={term: 0.5, "kl_coef": 0.5}))
    samples = [worth(s, 0.0) for s in near_samples(model)]
    first, second = update(policy, samples, RATE), update(policy, samples, RATE)
    assert (first[0].sequences, first[0].skipped_sequences) == (10, 0)
    assert second[0].grad_norm > 0


def test_a_sample_of_weight_zero_teaches_nothing_even_with_a_kl_term(
    model: PreTrainedModel,
) -> None:
    """Alone in its micro-batch, and beside others."""
    settings = make_settings(update={"kl_coef": 0.5, "tokens_per_batch": 40, "grad_clip": 1e3})
    samples = near_samples(model)
    samples[6] = dataclasses.replace(samples[6], weight=0.0)  # the one with the longest prompt
    samples[0] = dataclasses.replace(samples[0], weight=0.0)
    policy, twin = LocalModel(model, settings), Twin(model, settings)
    (result,) = update(policy, samples, RATE)
    twin.update(samples, RATE)
    assert_close_everywhere(gradients(policy.model), gradients(twin.model), 1e-4)
    assert (result.sequences, result.skipped_sequences) == (8, 2)
    before = weights(policy.model)
    assert update(policy, [samples[6]], RATE) == []
    assert_equal_to_the_bit(weights(policy.model), before)


# ---------------------------------------------------------------------------------------------
# The reference, the sampler, the weights


def test_the_reference_stays_where_training_began(model: PreTrainedModel) -> None:
    policy = LocalModel(model, make_settings(update={"kl_coef": 0.5}))
    start = weights(policy.model)
    samples = near_samples(model)
    kl = [update(policy, samples, RATE)[0].means["kl"] for _ in range(3)]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert 1e-4 < kl[1] < kl[2]
    assert_equal_to_the_bit(weights(policy.reference.model), start)
    assert not any(p.requires_grad for p in policy.reference.parameters())


def test_without_a_kl_term_no_reference_is_kept(model: PreTrainedModel) -> None:
    policy = LocalModel(model, make_settings())
    assert policy.reference is None
    assert update(policy, near_samples(model), RATE)[0].means["kl"] == 0


def test_sampler_and_trainer_agree_before_the_first_step_and_not_after(
    model: PreTrainedModel,
) -> None:
    """The whole way: sample, push, train; both at the same temperature."""
    policy = LocalModel(model, make_settings())
    engine = TransformersEngine(tiny_model(seed=1), TOKENIZER, batch_size=16)
    engine.load_weights(policy.named_weights())
    params = SamplingParams(n=4, temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS)
    questions = [Question(f"q{i}", "unused", tuple(range(40, 41 + 9 * i))) for i in range(3)]
    samples = [
        TrainSample.of_answer(
            questions[i].id, questions[i].prompt_ids, c.token_ids, c.logprobs, (-1.0) ** k
        )
        for i, completions in engine.sample(questions, params)
        for k, c in enumerate(completions)
    ]
    (first,), (second,) = update(policy, samples, 1e-2), update(policy, samples, 1e-2)
    assert first.largest["sampler_max_gap"] < 1e-4
    assert first.means["sampler_kl"] < 1e-8
    assert first.means["clip_fraction"] == 0
    assert second.largest["sampler_max_gap"] > 0.1


@pytest.mark.parametrize("tied", [False, True])
def test_named_weights_are_all_an_engine_needs(tied: bool, tmp_path: Path) -> None:
    policy = LocalModel(
        load_policy_model(saved(tiny_model(tie_word_embeddings=tied), tmp_path)), make_settings()
    )
    names = [name for name, _ in policy.named_weights()]
    assert len(names) == len(set(names))
    assert ("lm_head.weight" in names) != tied
    engine = TransformersEngine(tiny_model(seed=1, tie_word_embeddings=tied), TOKENIZER, 8)
    engine.load_weights(policy.named_weights())
    assert_equal_to_the_bit(weights(engine.model), dict(policy.named_weights()))


def test_an_update_is_strictly_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run's mode only warns, as on GPUs."""
    model = load_policy_model(saved(tiny_model(), tmp_path))
    policy = LocalModel(model, make_settings())
    backward, modes = policy._backward, []
    mode = torch.get_deterministic_debug_mode

    def watched(loss: torch.Tensor) -> None:
        modes.append(mode())
        backward(loss)

    monkeypatch.setattr(policy, "_backward", watched)
    before = mode()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        update(policy, train_samples([(3, 4)]), 1e-4)
        assert (modes, mode()) == ([2], 1)
    finally:
        torch.set_deterministic_debug_mode(before)
