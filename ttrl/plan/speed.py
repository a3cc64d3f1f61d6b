"""Seconds per step from the machine's stated rates: a first estimate, to compare settings by."""

from __future__ import annotations

import math

from ttrl.plan.memory import Job, kv_tokens, states

GIGA = 1e9


def seconds(job: Job) -> dict[str, float]:
    """Estimate the seconds of each part of a step. Grading, loading and evaluation are left out."""
    return {
        "rollout": rollout_seconds(job),
        "push": push_seconds(job),
        "update": update_seconds(job),
        "offload": offload_seconds(job),
    }


def rollout_seconds(job: Job) -> float:
    """Estimate the time for decoding all votes.

    One token of every live sequence takes as long as reading the weights and all their keys and
    values, or as its matrix products, whichever is longer. As many tokens are needed as the
    longest answer has, or more where not all sequences fit at a time.
    """
    rollout, machine, shape = job.settings.rollout, job.machine, job.shape
    parallel = rollout.tensor_parallel if job.vllm else 1
    answer = machine.answer_share * rollout.max_new_tokens
    sequences = rollout.questions_per_step * rollout.votes * parallel / job.ranks
    room = max(1.0, kv_tokens(job) / (machine.prompt_tokens + answer))
    live_most = min(sequences, rollout.batch_size, room)
    iterations = max(rollout.max_new_tokens, sequences * answer / live_most)
    live = sequences * answer / iterations
    context = machine.prompt_tokens + answer / 2
    read = 2 * shape.parameters / parallel + live * context * shape.kv_bytes_per_token(parallel)
    memory = read / (machine.decode_bandwidth * machine.hbm_gb_s * GIGA)
    multiplied = 2 * (shape.body + shape.head) * live / parallel
    arithmetic = multiplied / (machine.train_utilization * machine.tflops * 1e12)
    return iterations * (max(memory, arithmetic) + _latency(job, live, parallel))


def _latency(job: Job, live: float, parallel: int) -> float:
    """Estimate the seconds of one token that no bandwidth shortens.

    Tensor parallelism sums twice per layer.
    """
    machine, shape = job.machine, job.shape
    reduction = machine.reduction_us * 1e-6 + 4 * live * shape.hidden / (machine.link_gb_s * GIGA)
    sums = 2 * reduction if parallel > 1 else 0.0
    return shape.layers * (machine.layer_us * 1e-6 + sums)


def push_seconds(job: Job) -> float:
    """Estimate the time for gathering all weights, and writing them into the engine."""
    size = 2 * job.shape.parameters
    return collective_seconds(job, size) + 3 * size / (job.machine.hbm_gb_s * GIGA)


def collective_seconds(job: Job, size: float) -> float:
    """Estimate the time for so many bytes, of which every rank has a share, to reach all ranks.

    Each receives what it lacks from its node's GPUs while the node receives what it lacks from the
    others.
    """
    machine = job.machine
    within = size * (job.ranks - 1) / job.ranks / machine.link_gb_s
    among = size * (machine.nodes - 1) / machine.nodes / (machine.in_node * machine.node_link_gb_s)
    return max(within, among) / GIGA


def update_seconds(job: Job) -> float:
    """Estimate the time for training on the chosen answers, all of them.

    Zero advantages cost nothing, but are not known beforehand. Under ZeRO-3 each micro-batch
    gathers all weights forward and backward, and divides the gradients, beside none of its
    arithmetic.
    """
    machine, shape, policy = job.machine, job.shape, job.settings.policy
    rollout = job.settings.rollout
    length = machine.prompt_tokens + machine.answer_share * rollout.max_new_tokens
    sequences = rollout.questions_per_step * policy.trained_samples
    tokens = sequences * length / job.ranks
    updates = math.ceil(sequences / policy.sequences_per_update)
    batches = max(updates, tokens / job.tokens)
    compute = (
        tokens * token_flops(job, length) / (machine.train_utilization * machine.tflops * 1e12)
    )
    passes = 2 if job.adapters else 3
    communication = batches * collective_seconds(job, passes * 2 * shape.parameters)
    return compute + communication + optimizer_seconds(job, updates, batches)


def optimizer_seconds(job: Job, updates: float, batches: float) -> float:
    """Estimate the time for the optimizer steps.

    Each reads and writes weights and both moments, and reads the gradients. With
    ``memory.offload_optimizer`` that is the host's memory, which a node's GPUs share; each
    micro-batch's gradients go there, and each step's weights come back.
    """
    machine = job.machine
    own = (job.adapters or job.shape.parameters) / job.ranks
    if not job.settings.memory.offload_optimizer:
        return updates * 30 * own / (machine.hbm_gb_s * GIGA)
    moved = (batches + updates) * 2 * own / machine.pcie_gb_s
    return (moved + updates * 30 * own * machine.in_node / machine.host_gb_s) / GIGA


def token_flops(job: Job, length: float) -> float:
    """Count operations per trained token of sequences of ``length`` tokens, with recomputation.

    A forward pass multiplies with every parameter, and attention with half of the sequence on
    average; the backward pass costs twice that, or once with frozen weights. The head is three
    products whatever is recomputed.
    """
    shape = job.shape
    forward = 2 * shape.body + 2 * shape.layers * shape.query * length
    passes = 1 + (1 if job.adapters else 2) + job.recomputed / shape.layers
    reference = (forward + 2 * shape.head) if job.settings.loss.kl_coef > 0 else 0
    return passes * forward + 2 * shape.head * (2 if job.adapters else 3) + reference


def offload_seconds(job: Job) -> float:
    """Estimate the time for optimizer state to the host and back; used gradients are forgotten."""
    if not job.settings.memory.offload_during_rollout:
        return 0.0
    own = states(job)
    away = own["master weights"] + own["moments"]
    return 2 * away / (job.machine.pcie_gb_s * GIGA)
