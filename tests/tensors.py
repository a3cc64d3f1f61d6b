"""What a model holds, and whether two of them hold the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

Tensors = Mapping[str, torch.Tensor]


def weights(model: PreTrainedModel) -> Tensors:
    """A copy of each, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: PreTrainedModel) -> Tensors:
    """Of every parameter, in float64."""
    return {name: p.grad.double() for name, p in model.named_parameters()}


def assert_equal_to_the_bit(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def assert_close_everywhere(ours: Tensors, theirs: Tensors, share: float) -> None:
    """Off by at most this share of the largest entry of the same tensor."""
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        error = (ours[name].double() - truth).abs().max()
        assert error <= share * truth.abs().max(), name
