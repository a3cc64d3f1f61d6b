"""Seconds per step from the machine's stated rates: a first estimate, to compare settings by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ttrl.models.dealing import BUNDLES, PROMPT_SHARE
from ttrl.plan.memory import Job, kv_tokens, states
from ttrl.plan.second_model import second_model, trained
from ttrl.plan.second_model import states as second_states
from ttrl.plan.turns import Asked, all_answers

GIGA = 1e9


def seconds(job: Job) -> dict[str, float]:
    """Estimate the seconds of each part of a step. Grading, loading and evaluation are left out."""
    return {
        "rollout": rollout_seconds(job),
        "free pass": free_pass_seconds(job),
        "push": push_seconds(job) * (1 + job.turns.pushes),
        "credit": credit_seconds(job),
        "scoring": scoring_seconds(job),
        "update": update_seconds(job),
        "offload": offload_seconds(job),
    }


def rollout_seconds(job: Job) -> float:
    """Estimate the time for decoding all votes, turn by turn, and what ReMax compares them with.

    Prompts of later turns are each read once; the reading of shared ones is left out. So are
    further rounds of ``rollout.resample_rounds``: how many questions teach nothing is not known
    beforehand.
    """
    rollout = job.settings.rollout
    found = 0.0
    for asked in job.asked:
        found += decoding_seconds(job, asked.answers, rollout.max_new_tokens, asked.prompt)
        if not asked.shared:
            found += reading_seconds(job, asked)
    if job.settings.reward.advantages == "remax":
        found += decoding_seconds(job, 1, rollout.max_new_tokens)
    return found


def free_pass_seconds(job: Job) -> float:
    """Estimate the time for what the label source asks the policy.

    Of candidates there are as many as may be. Prompts are counted like those of questions, though a
    pool of solutions is longer.
    """
    rollout, harmony, reflection = (
        job.settings.rollout,
        job.settings.harmony,
        job.settings.reflection,
    )
    batches: list[tuple[int, int]] = []  # replies to a question, and their tokens
    match job.settings.reward.labels:
        case "harmony":
            own = harmony.paraphrase != "policy"
            batches += [] if own else [(1, harmony.tokens)]
            batches.append((harmony.votes or rollout.votes, rollout.max_new_tokens))
        case "reflection":
            if reflection.summary_tokens:
                batches.append((reflection.candidates, reflection.summary_tokens))
            batches.append((1, reflection.tokens))
    return math.fsum(decoding_seconds(job, replies, tokens) for replies, tokens in batches)


def reading_seconds(job: Job, asked: Asked) -> float:
    """Estimate the time for reading the prompts of answers, each by itself."""
    tokens = job.settings.rollout.questions_per_step * asked.answers * asked.prompt / job.ranks
    return tokens * forward_flops(job, asked.prompt) / arithmetic_rate(job)


def decoding_seconds(
    job: Job, per_question: int, max_new_tokens: int, prompt: float | None = None
) -> float:
    """Estimate the time for decoding so many completions to each of a step's questions.

    One token of every live sequence takes as long as reading the weights and all their keys and
    values, or as its matrix products, whichever is longer. As many tokens are needed as the
    longest answer has, or more where not all sequences fit at a time. Prompts are as long as a
    question's, unless ``prompt`` says otherwise.
    """
    rollout, machine, shape = job.settings.rollout, job.machine, job.shape
    parallel = rollout.tensor_parallel if job.vllm else 1
    answer = machine.answer_share * max_new_tokens
    sequences = rollout.questions_per_step * per_question * parallel / job.ranks
    read_before = machine.prompt_tokens if prompt is None else prompt
    room = max(1.0, kv_tokens(job) / (read_before + answer))
    live_most = min(sequences, rollout.batch_size, room)
    iterations = max(max_new_tokens, sequences * answer / live_most)
    live = sequences * answer / iterations
    context = read_before + answer / 2
    read = 2 * shape.parameters / parallel + live * context * shape.kv_bytes_per_token(parallel)
    memory = read / (machine.decode_bandwidth * machine.hbm_gb_s * GIGA)
    multiplied = 2 * (shape.body + shape.head) * live / parallel
    arithmetic = multiplied / arithmetic_rate(job)
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
    """Estimate the time for gathering all weights of a policy, and writing them into the engine."""
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

    Zero advantages cost nothing, but are not known beforehand.
    """
    flops = update_flops(job, trained_length(job))
    epochs = job.settings.policy.epochs_per_rollout
    return epochs * training_seconds(job, flops, job.adapters or job.shape.parameters)


def credit_seconds(job: Job) -> float:
    """Estimate the time for scoring a step's samples, and for training the second model on them.

    A critic has no head. A reward model's samples are scored by it and by the starting model, which
    its loss needs again. A KL penalty in the reward takes the policy's scores and the start's.
    """
    name = second_model(job)
    if name is None:
        return 0.0
    headless = replace(job, shape=replace(job.shape, head=0))
    own = headless if name == "critic" else job
    length = trained_length(job)
    flops = token_flops(own, length) + scoring_flops(own, length)
    others = 2 if name == "PRM" or job.settings.reward.kl_coef > 0 else 0
    return training_seconds(job, flops + others * scoring_flops(job, length), trained(job))


def scoring_seconds(job: Job) -> float:
    """Estimate the time for the policy's log-probs of its samples before their first update.

    All are scored if the loss compares them with the sampler's or with each other's; for the ratio
    against them, those that the first optimizer step does not train on, or in a second epoch does.
    """
    loss, policy = job.settings.loss, job.settings.policy
    tokens, updates, batches = step_work(job)
    if loss.compares_tokens or loss.corrects:
        share = 1.0
    elif loss.old_logprobs == "policy":
        share = 1.0 if policy.epochs_per_rollout > 1 else 1 - 1 / updates
    else:
        return 0.0
    compute = tokens * scoring_flops(job, trained_length(job)) / arithmetic_rate(job)
    return share * (compute + batches * collective_seconds(job, 2 * job.shape.parameters))


def answer_length(job: Job) -> float:
    """Estimate the tokens of an answer."""
    return job.machine.answer_share * job.settings.rollout.max_new_tokens


def trained_length(job: Job) -> float:
    """Estimate the tokens of the sequence that a row of an update is in: prompt and answer."""
    rows = [asked.answers * rows_of(job, asked) for asked in job.asked]
    lengths = [asked.prompt + answer_length(job) for asked in job.asked]
    return math.fsum(n * length for n, length in zip(rows, lengths, strict=True)) / math.fsum(rows)


def trained_rows(job: Job) -> float:
    """Estimate the rows that a sequence takes, whose turn is any of those that are sampled."""
    rows = math.fsum(asked.answers * rows_of(job, asked) for asked in job.asked)
    return rows / all_answers(job.asked)


def rows_of(job: Job, asked: Asked) -> float:
    """Estimate the rows that a turn's sequence takes: its answer's, and its part of the prompt's.

    A prompt that is shared is there once for the samples that fit beside it.
    """
    prompt, own, policy = asked.prompt, answer_length(job), job.settings.policy
    if not asked.shared:
        return prompt + own
    share = asked.answers / all_answers(job.asked)
    lengths = math.fsum(a.answers * (a.prompt + own) for a in job.asked) / all_answers(job.asked)
    together = policy.sequences_per_update / job.ranks * lengths
    even = min(job.tokens, together) / BUNDLES
    room = max(even, min(prompt / PROMPT_SHARE, job.tokens)) - prompt
    return own + prompt / max(1.0, min(policy.trained_samples * share, room / own))


def training_seconds(job: Job, flops: float, parameters: int) -> float:
    """Estimate the time for a pass over a step's samples, at so many operations per token.

    Under ZeRO-3 each micro-batch gathers all weights forward and backward, and divides the
    gradients, beside none of its arithmetic.
    """
    tokens, updates, batches = step_work(job)
    passes = 2 if job.adapters else 3
    communication = batches * collective_seconds(job, passes * 2 * job.shape.parameters)
    compute = tokens * flops / arithmetic_rate(job)
    return compute + communication + optimizer_seconds(job, updates, batches, parameters)


def step_work(job: Job) -> tuple[float, int, float]:
    """Estimate a rank's tokens of a step's samples, their updates and their micro-batches."""
    policy = job.settings.policy
    sequences = job.settings.rollout.questions_per_step * policy.trained_samples
    tokens = sequences * trained_rows(job) / job.ranks
    updates = math.ceil(sequences / policy.sequences_per_update)
    return tokens, updates, max(updates, tokens / job.tokens)


def arithmetic_rate(job: Job) -> float:
    """Return the operations per second that training reaches."""
    return job.machine.train_utilization * job.machine.tflops * 1e12


def optimizer_seconds(job: Job, updates: float, batches: float, parameters: int) -> float:
    """Estimate the time for the optimizer steps of so many trained parameters.

    Each reads and writes weights and both moments, and reads the gradients. With
    ``memory.offload_optimizer`` that is the host's memory, which a node's GPUs share; each
    micro-batch's gradients go there, and each step's weights come back.
    """
    machine = job.machine
    own = parameters / job.ranks
    if not job.settings.memory.offload_optimizer:
        return updates * 30 * own / (machine.hbm_gb_s * GIGA)
    moved = (batches + updates) * 2 * own / machine.pcie_gb_s
    return (moved + updates * 30 * own * machine.in_node / machine.host_gb_s) / GIGA


def token_flops(job: Job, length: float) -> float:
    """Count operations per trained token of sequences of ``length`` tokens, with recomputation.

    The backward pass costs twice what the forward pass does, or once with frozen weights. The head
    is three products whatever is recomputed.
    """
    passes = 1 + (1 if job.adapters else 2) + job.recomputed / job.shape.layers
    head = 2 * job.shape.head * (2 if job.adapters else 3)
    return passes * forward_flops(job, length) + head


def forward_flops(job: Job, length: float) -> float:
    """Count a forward pass's operations per token, the head's aside.

    It multiplies with every parameter, and attention with half of the sequence on average.
    """
    return 2 * job.shape.body + 2 * job.shape.layers * job.shape.query * length


def scoring_flops(job: Job, length: float) -> float:
    """Count operations per token of log-probs without a gradient."""
    return forward_flops(job, length) + 2 * job.shape.head


def update_flops(job: Job, length: float) -> float:
    """Count operations per token that the policy is trained on, those of the reference included."""
    reference = scoring_flops(job, length) if job.settings.loss.kl_coef > 0 else 0.0
    return token_flops(job, length) + reference


def offload_seconds(job: Job) -> float:
    """Estimate the time for optimizer state to the host and back; used gradients are forgotten."""
    if not job.settings.memory.offload_during_rollout:
        return 0.0
    away = sum(size for item, size in _optimizer_states(job))
    return 2 * away / (job.machine.pcie_gb_s * GIGA)


def _optimizer_states(job: Job) -> Iterator[tuple[str, int]]:
    """Yield what phase offload moves, of each policy and of the second model."""
    for found in (*[states(job)] * (1 + job.turns.further), second_states(job)):
        yield from ((n, s) for n, s in found.items() if n.endswith(("master weights", "moments")))
