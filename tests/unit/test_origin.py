"""The digests that tell which model a run began with."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from tiny_models import make_settings, tiny_model
from transformers import PreTrainedModel
from ttrl_kernels import FusedLMHead

from ttrl.learner.local import LocalModel
from ttrl.run.identity import model_digests

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed"
)


def origin(model: PreTrainedModel, dtype: torch.dtype, **policy: Any) -> dict[str, str]:
    FusedLMHead.replace(model)
    return model_digests(LocalModel(model, make_settings(policy)), dtype)


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"gradient_checkpointing": True},
        pytest.param({"lora_rank": 2}, marks=needs_peft),
    ],
    ids=str,
)
def test_it_does_not_depend_on_how_the_model_is_held(policy: dict[str, Any]) -> None:
    """In float32, as in one process, or in bfloat16, as ZeRO-3 and a frozen base are."""
    model = tiny_model()
    expected = origin(copy.deepcopy(model), torch.bfloat16)
    assert origin(model.to(torch.bfloat16), torch.bfloat16, **policy) == expected


def test_it_tells_models_apart() -> None:
    expected = origin(tiny_model(), torch.float32)
    moved = tiny_model()
    with torch.no_grad():
        moved.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.001)
    assert origin(tiny_model(), torch.float32) == expected
    for other, what in ((moved, "weights"), (tiny_model(rms_norm_eps=1e-4), "config")):
        found = origin(other, torch.float32)
        assert {name for name in expected if found[name] != expected[name]} == {what}
