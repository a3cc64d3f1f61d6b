"""Which layers recompute their activations in the backward pass."""

from __future__ import annotations

import math

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ttrl.settings import MemorySettings


def recomputed_layers(memory: MemorySettings, layers: int) -> int:
    """Count the layers, of so many, that recompute their activations: the first ones.

    The last ones keep theirs: those are gone before the others make their own again.
    """
    share = memory.recompute_share if memory.gradient_checkpointing else 0.0
    return math.ceil(round(share * layers, 6))  # 0.14 of 50 are 7, though not in floats


def recompute(model: PreTrainedModel, memory: MemorySettings) -> None:
    """Have the first `recomputed_layers` of a model recompute their activations."""
    if not memory.gradient_checkpointing:
        return
    model.gradient_checkpointing_enable()
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers[recomputed_layers(memory, len(layers)) :]:
        layer.gradient_checkpointing = False
