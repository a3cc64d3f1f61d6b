"""Counts the bytes that the further policies take, where each agent has a policy of its own."""

from __future__ import annotations

from ttrl.plan.memory import Job
from ttrl.plan.second_model import LEAVES, states_beside

PARTS = ("parameters", *LEAVES)
"""What a policy holds; `LEAVES` is away while another one is trained, with phase offload."""


def states(job: Job) -> dict[str, int]:
    """Count the bytes of one further policy's weights, gradients and optimizer state."""
    return states_beside(job, job.adapters or job.shape.parameters)


def named(found: dict[str, int], count: int, *parts: str) -> dict[str, int]:
    """Return these parts of so many further policies, by the names of a plan's lines."""
    return {label(part): count * found[part] for part in parts if part in found}


def label(part: str) -> str:
    """Return what a plan calls a part of the further policies."""
    return f"agents' {part}"
