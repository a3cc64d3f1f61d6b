"""The policy update in bfloat16, and with numbers that are not finite."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tensors import assert_equal_to_the_bit, gradients, weights
from tiny_models import LENGTHS, make_settings, near_samples, train_samples, update
from transformers import PreTrainedModel

from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.settings import ModelSettings
from ttrl.types import TrainSample

RATE = 3e-4


# ---------------------------------------------------------------------------------------------
# bfloat16


def test_bfloat16_products_train_float32_weights(saved_model: ModelSettings) -> None:
    """Steps far below the spacing of bfloat16 numbers must not be lost."""
    model = load_policy_model(saved_model)
    before, samples = weights(model), near_samples(model)
    settings = make_settings(
        model={"dtype": "bfloat16"}, update={"weight_decay": 0.0, "kl_coef": 0.1}
    )
    policy = LocalModel(model, settings)
    update(policy, samples, 1e-6)
    for name, p in policy.model.named_parameters():
        assert p.dtype == p.grad.dtype == torch.float32
        step = p.detach() - before[name]
        moved = p.grad.abs() > 1e-3 * p.grad.abs().max()
        # AdamW's first step is the learning rate in the direction of the sign of the gradient.
        assert int(moved.sum()) > 0.01 * p.numel()
        torch.testing.assert_close(
            step[moved], -1e-6 * p.grad[moved].sign(), rtol=0.05, atol=2 * 2.0**-24
        )
    weight = before["model.layers.0.mlp.up_proj.weight"]
    after = policy.model.model.layers[0].mlp.up_proj.weight
    # Bfloat16 weights would not have moved.
    assert (after.bfloat16() == weight.bfloat16()).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_policy_and_reference_are_in_the_type_that_the_settings_say(
    dtype: torch.dtype, model: PreTrainedModel
) -> None:
    settings = make_settings(
        model={"dtype": str(dtype).removeprefix("torch.")}, update={"kl_coef": 0.1}
    )
    policy, found = LocalModel(model, settings), []
    for part in (policy.model, policy.reference.model):
        part.model.layers[1].mlp.up_proj.register_forward_hook(
            lambda module, args, output: found.append(output.dtype)
        )
    update(policy, train_samples(LENGTHS), RATE)
    assert found == [dtype, dtype]


def test_bfloat16_gradients_point_where_float32_ones_do(saved_model: ModelSettings) -> None:
    samples = near_samples(load_policy_model(saved_model))
    found = []
    for dtype in ("float32", "bfloat16"):
        policy = LocalModel(load_policy_model(saved_model), make_settings(model={"dtype": dtype}))
        (result,) = update(policy, samples, RATE)
        found.append((torch.cat([g.flatten() for g in gradients(policy.model).values()]), result))
    (truth, exact), (rounded, result) = found
    assert not torch.equal(truth, rounded)
    # 8 bits per factor, in some ten products one after the other
    assert torch.cosine_similarity(truth, rounded, dim=0) > 0.99
    assert result.means["entropy"] == pytest.approx(exact.means["entropy"], rel=0.02)


# ---------------------------------------------------------------------------------------------
# Not finite


def poisoned(samples: list[TrainSample], **changes: Any) -> list[TrainSample]:
    return [*samples[:6], dataclasses.replace(samples[6], **changes), *samples[7:]]


@pytest.mark.parametrize(
    "changes",
    [
        {"advantages": (0.5, math.nan)},
        {"advantages": (math.inf,) * 2},
        {
            "advantages": (math.inf,) * 2,
            "logprobs": (-50.0, -50.0),
        },  # clipped: the gradient is finite
        {"weight": math.nan},
        {"logprobs": (math.nan, -1.0)},
        {"logprobs": (-1.0, math.nan)},
    ],
)
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(
    changes: dict[str, Any], saved_model: ModelSettings
) -> None:
    """Also for the next update, which must find neither gradients nor moments of the bad one."""
    samples = near_samples(load_policy_model(saved_model))
    runs = []
    for bad in (False, True):
        policy = LocalModel(load_policy_model(saved_model), make_settings())
        update(policy, samples, RATE)
        if bad:
            before = weights(policy.model)
            with pytest.raises(FloatingPointError, match=r"not finite.* weights are unchanged"):
                update(policy, poisoned(samples, **changes), RATE)
            assert all(p.grad is None for p in policy.model.parameters())
            assert_equal_to_the_bit(weights(policy.model), before)
        update(policy, samples, RATE)
        runs.append(weights(policy.model))
    assert_equal_to_the_bit(*runs)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(value: float, model: PreTrainedModel) -> None:
    policy = LocalModel(model, make_settings())
    before, samples = weights(policy.model), near_samples(model)
    name = "model.layers.1.self_attn.v_proj.weight"
    policy.model.get_parameter(name).register_hook(
        lambda g: g.index_fill(0, torch.tensor(3), value)
    )
    with pytest.raises(FloatingPointError, match=rf"gradient norm (nan|inf).*\['{name}'\]"):
        update(policy, samples, RATE)
    assert_equal_to_the_bit(weights(policy.model), before)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"advantages": (math.nan,) * 2}, 0),  # seen before the first step
        ({"advantages": (3e38,) * 2, "logprobs": (-50.0,) * 2}, 5),  # in the second step's loss
    ],
)
def test_updates_before_the_bad_one_are_kept(
    saved_model: ModelSettings, changes: dict[str, Any], kept: int
) -> None:
    """An error in the second optimizer step leaves the weights as the first one made them."""
    samples = near_samples(load_policy_model(saved_model))
    settings = make_settings(update={"sequences_per_update": 5})
    policies = [LocalModel(load_policy_model(saved_model), settings) for _ in range(2)]
    update(policies[0], samples[:kept], RATE)
    with pytest.raises(FloatingPointError):
        update(policies[1], poisoned(samples, **changes), RATE)
    assert_equal_to_the_bit(*(weights(p.model) for p in policies))
