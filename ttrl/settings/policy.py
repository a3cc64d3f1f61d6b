"""The section [policy]: what an update trains on, and who holds the weights."""

from __future__ import annotations

from typing import Literal

from ttrl.settings.section import Positive, Section


class PolicySettings(Section):
    """Settings of what an update trains on, and of who holds the weights."""

    backend: Literal["local", "zero3"] | None = None
    """local: one process, float32 weights. zero3: DeepSpeed, a share of everything on each rank.
    None: zero3 where a launcher started the run, else local."""
    trained_samples: Positive = 32
    """Answers per question that are trained on: the first ones, as in the paper."""
    mask_truncated: bool = False
    """Train on no answer that was cut off at ``rollout.max_new_tokens``, DAPO's overlong filter:
    it votes, and counts in its group's mean, and another takes its place if there is one."""
    sequences_per_update: Positive = 32
    """Sequences in one optimizer step."""
    epochs_per_rollout: Positive = 1
    """Passes of the update over a step's samples, in the same order; a critic's and a reward
    model's make one."""
