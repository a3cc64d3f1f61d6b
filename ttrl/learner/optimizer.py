"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch

from ttrl.settings import OptimizerSettings


def learning_rate(step: int, total: int, optimizer: OptimizerSettings) -> float:
    """Return the rate at ``step`` (from 1) of ``total``: linear warm-up, then a cosine."""
    rising = math.ceil(optimizer.warmup_share * total)
    if step <= rising:
        return optimizer.learning_rate * step / rising
    done = (step - 1 - rising) / max(1, total - rising)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return optimizer.learning_rate * (
        optimizer.final_lr_share + (1 - optimizer.final_lr_share) * cosine
    )


def steady_rate(step: int, warmup_steps: int, optimizer: OptimizerSettings) -> float:
    """Return the rate at ``step`` (from 1) of a run without an end: a line up to the peak."""
    return optimizer.learning_rate * min(1.0, step / max(1, warmup_steps))


def adamw(
    model: torch.nn.Module, optimizer: OptimizerSettings, *, fused: bool
) -> torch.optim.AdamW:
    """Make the optimizer of all that is trained.

    ``fused`` makes no copies on its way, and rounds differently.
    """
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
        weight_decay=optimizer.weight_decay,
        fused=fused,
    )
