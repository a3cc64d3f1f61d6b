"""Bytes of the model that is trained beside the policy: a critic, or a reward model."""

from __future__ import annotations

from ttrl.plan import memory
from ttrl.plan.memory import Job

NAMES = {"gae": "critic", "prime": "PRM"}
"""What it is called, by ``reward.advantages``: PRIME's is a process reward model. Other advantages
need none."""

LEAVES = ("gradients", "master weights", "moments")
"""What phase offload takes off the GPU, of this model as of any policy."""


def second_model(job: Job) -> str | None:
    """Name the model that is trained beside the policy, if there is one."""
    return NAMES.get(job.settings.reward.advantages)


def trained(job: Job) -> int:
    """Count the parameters of the second model that are trained; 0 if there is none.

    A critic has one row in the place of the output layer; with adapters it has that besides.
    """
    name, shape = second_model(job), job.shape
    if name is None:
        return 0
    row = shape.hidden if name == "critic" else 0
    if job.adapters:
        return job.adapters + row
    if name == "critic":
        return shape.parameters - (0 if shape.tied else shape.head) + row
    return shape.parameters


def states(job: Job) -> dict[str, int]:
    """Count the bytes that the second model holds, see `states_beside`; {} without one."""
    if second_model(job) is None:
        return {}
    found = states_beside(job, trained(job))
    return {f"{second_model(job)} {item}": size for item, size in found.items()}


def states_beside(job: Job, parameters: int) -> dict[str, int]:
    """Count the bytes of weights, gradients and optimizer state of a model beside the policy.

    So many of its ``parameters`` are trained. With adapters one process has one frozen base for
    all models; under ZeRO-3 each has its own.
    """
    frozen = job.narrow * job.shape.parameters if job.adapters and job.zero3 else 0
    return memory.states_of(job, parameters, frozen)


def leaves(job: Job) -> tuple[str, ...]:
    """List the items of `states` that phase offload takes off the GPU."""
    return tuple(f"{second_model(job)} {item}" for item in LEAVES)


def loss(job: Job) -> dict[str, int]:
    """Count the bytes of its last norm, head and loss: a critic has no logits."""
    if second_model(job) == "critic":
        return {"hidden states": job.tokens * (4 + 2 * job.wide) * job.shape.hidden}
    return memory.loss(job)
