"""Bytes of the host's memory that the GPUs of one node need: what is not on them, and copies."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ttrl.learner.zero3 import SUB_GROUP
from ttrl.plan.machine import GIB
from ttrl.plan.memory import Job
from ttrl.plan.second_model import trained


def host_memory(job: Job) -> dict[str, int]:
    """Count the bytes in each node, by what they are for; program and libraries aside.

    With ``memory.offload_optimizer`` DeepSpeed keeps gradients twice, as they come and, for each
    of its sub-groups, in float32: both in memory that torch pins, and rounds up to a power of two.
    """
    memory, policy = job.settings.memory, job.adapters or job.shape.parameters
    policies = 1 + job.turns.further
    shares = [math.ceil(size / job.ranks) for size in (*[policy] * policies, trained(job))]
    own = sum(shares)
    each: dict[str, int] = {}
    if memory.offload_during_rollout or memory.offload_optimizer:
        each["optimizer state"] = 12 * own
    if memory.offload_optimizer:
        each["gradients"] = sum(_gradients(share) for share in shares if share)
    teacher = 0
    if job.settings.reward.labels == "teacher":  # each rank has a share of all its weights
        teacher = 4 * math.ceil(job.shape.parameters / job.ranks)
    if job.settings.checkpoint.every > 0:
        moved = teacher if job.settings.reward.teacher_decay < 1 else 0
        each["a checkpoint's copy"] = 12 * own + moved
    if job.settings.guard.on_collapse == "stop" or job.settings.stopping.by_votes:
        each["kept weights"] = 2 * 4 * shares[0] * policies
    if teacher:
        each["teacher"] = teacher
    processes = job.machine.in_node if job.zero3 else 1
    return {name: size * processes for name, size in each.items()}


def host_lacking(job: Job) -> Iterator[str]:
    """Say what a host cannot hold, where its size is known."""
    need, has = sum(host_memory(job).values()) / GIB, job.machine.host_gib
    if has is not None and need > has:
        yield f"the host needs {need:.0f} of {has:g} GiB"


def _gradients(share: int) -> int:
    groups = math.ceil(share / SUB_GROUP)
    return _pinned(2 * share) + groups * _pinned(4 * min(SUB_GROUP, share))


def _pinned(size: int) -> int:
    return 1 << (size - 1).bit_length()
