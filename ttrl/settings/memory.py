"""The section [memory]: what an update may hold on a GPU."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Positive, Section


class MemorySettings(Section):
    """Settings of what an update holds on a GPU; each trades time for memory."""

    tokens_per_batch: Positive = 16384
    """Packed tokens in one forward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    recompute_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gradient_checkpointing: in this share of the layers; the last ones keep their activations."""
    liger_kernels: bool = False
    """On GPUs: liger-kernel's norms, rotary positions and MLPs, which keep fewer activations."""
    offload_optimizer: bool = False
    """zero3: the optimizer's state and its float32 copy of the weights are in the host's memory
    always, and AdamW runs on the CPU: less GPU memory, a slower update."""
    offload_during_rollout: bool = False
    """zero3 on GPUs: gradients, optimizer state and its copy of the weights wait in the host's
    memory while answers are sampled."""
