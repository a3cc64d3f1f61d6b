"""Bytes per GPU, phase by phase, from first principles (derived in docs/plan.md).

Names of the sizes in the formulas: T packed tokens, H hidden size, I intermediate size, Q and K
numbers per token in queries and in keys, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from ttrl_kernels.chunks import most_rows

from ttrl.config import Settings
from ttrl.plan.machine import GIB, Machine
from ttrl.plan.shape import ModelShape
from ttrl.policy.zero3 import REDUCE_BUCKET, SUB_GROUP
from ttrl.types import UserError

PACKED_PADDING = 1.2
"""Places over tokens where packed attention lays sequences side by side. On GPUs in half precision
it does not, and this counts too much."""
VLLM_BATCHED_TOKENS = 8192
"""Tokens in one prefill of vLLM (its max_num_batched_tokens for GPUs below 70 GiB)."""


@dataclass(frozen=True)
class Phase:
    """A moment of the step at which memory peaks, and what one GPU then holds."""

    name: str
    items: Mapping[str, int]
    """Bytes by what they are for."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.items.values())


@dataclass(frozen=True)
class Job:
    """What is planned: a model's shape, a run's settings, a machine."""

    shape: ModelShape
    settings: Settings
    machine: Machine

    @property
    def zero3(self) -> bool:
        """Whether DeepSpeed spreads the states."""
        backend = self.settings.policy.backend
        return backend == "zero3" or (backend is None and self.machine.gpus > 1)

    @property
    def ranks(self) -> int:
        """Processes among which the states and the sequences are divided."""
        return self.machine.gpus if self.zero3 else 1

    @property
    def vllm(self) -> bool:
        """Whether vLLM samples; if not, transformers does."""
        return self.settings.rollout.engine == "vllm"

    @property
    def autocast(self) -> bool:
        """float32 weights whose matrix products run in bfloat16: the local backend's way."""
        return not self.zero3 and self.settings.model.dtype == "bfloat16"

    @property
    def wide(self) -> int:
        """Bytes of a number in the stream between layers, which has the weights' type."""
        return 2 if self.zero3 or (self.autocast and self.settings.policy.lora_rank) else 4

    @property
    def narrow(self) -> int:
        """Bytes of a number in the matrix products."""
        return 2 if self.zero3 or self.autocast else 4

    @property
    def adapters(self) -> int:
        """Parameters of the LoRA adapters."""
        return (self.settings.policy.lora_rank or 0) * self.shape.adapted

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: prompt and answer, within the model's context."""
        longest = self.settings.data.max_prompt_tokens + self.settings.rollout.max_new_tokens
        return min(longest, self.shape.context or longest)

    @property
    def tokens(self) -> int:
        """T: packed tokens in one forward pass."""
        return self.settings.policy.tokens_per_batch

    @property
    def chunk_rows(self) -> int:
        """Rows of the logits that exist at a time."""
        return min(self.tokens, most_rows(self.shape.vocabulary, torch.float32, on_cpu=False))


def phases(job: Job) -> tuple[Phase, ...]:
    """The moments of a step at which memory can peak."""
    forward = activations(job) | gathered(job)
    update = (
        ("loss", forward | loss(job) | weight_copies(job, in_backward=False)),
        ("backward", forward | recomputed(job) | weight_copies(job, in_backward=True)),
        ("optimizer", optimizer_temporaries(job)),
    )
    found = [_phase(job, name, states(job), items, asleep(job)) for name, items in update]
    resident = states(job, in_rollout=True)
    found.append(_phase(job, "push", resident, push(job), engine_weights(job)))
    sampling = engine_weights(job) | {"engine workspace": engine_workspace(job)}
    found.append(_phase(job, "rollout", resident, {}, sampling | {"KV cache": kv_cache(job)}))
    return tuple(found)


def _phase(
    job: Job, name: str, resident: dict[str, int], passing: dict[str, int], engine: dict[str, int]
) -> Phase:
    """``passing`` is what the allocator takes and gives back, and where it loses some."""
    lost = math.ceil(job.machine.fragmentation * sum(passing.values()))
    items = resident | passing | engine
    items |= {"CUDA, NCCL": job.machine.context, "fragmentation": lost}
    return Phase(name, {key: value for key, value in items.items() if value})


def states(job: Job, *, in_rollout: bool = False) -> dict[str, int]:
    """Weights, gradients and optimizer state of the trainer.

    ZeRO-3 in bfloat16 holds 2 bytes per parameter, 2 of gradient, 4 of float32 master weights and 8
    of AdamW's two moments, divided by the ranks; the local backend 4, 4 and 8, all in float32. With
    LoRA those are of the adapters alone, on top of frozen weights, which are also the reference
    model of the KL term.
    """
    shape, policy = job.shape, job.settings.policy
    trained = job.adapters or shape.parameters
    weight, gradient, optimizer = (2, 2, 12) if job.zero3 else (4, 4, 8)
    frozen = job.narrow * shape.parameters if job.adapters else 0
    reference = 0 if job.adapters or policy.kl_coef == 0 else weight * shape.parameters
    items = {
        "parameters": weight * trained + frozen,
        "gradients": gradient * trained,
        "optimizer": optimizer * trained,
        "reference model": reference,
    }
    if in_rollout and job.zero3 and policy.offload_during_rollout:
        del items["gradients"], items["optimizer"]
    return {name: math.ceil(value / job.ranks) for name, value in items.items()}


def layer_saved(job: Job, padding: float) -> float:
    """Bytes per token that a decoder layer keeps for its backward pass.

    Two norms keep their input in float32 and their result; each matrix product its input; attention
    queries, keys and values before and after they are laid side by side, its output likewise, and
    one float32 number per head; the MLP four vectors of its width.
    """
    shape, wide, narrow = job.shape, job.wide, job.narrow
    hidden, query, key = shape.hidden, shape.query, shape.key
    norms = 2 * ((4 + wide) * hidden + 4)
    # Autocast copies its input for each of the five products that read the stream.
    inputs = (5 if wide > narrow else 2) * narrow * hidden
    head_norms = 0
    if shape.head_norms:
        head_norms = (4 + narrow) * (query + key) + 4 * (shape.heads + shape.kv_heads)
    turned = wide * (query + key) + narrow * key
    beside = narrow * (2 * query + 2 * key) + 4 * shape.heads
    mlp = 4 * narrow * shape.intermediate
    adapters = narrow * (job.settings.policy.lora_rank or 0) * shape.adapted_matrices
    once = norms + inputs + head_norms + turned + narrow * query + mlp + adapters
    return once + padding * beside


def activations(job: Job) -> dict[str, int]:
    """What the layers leave for the backward pass: with checkpointing, only what each was given."""
    checkpointing = job.settings.policy.gradient_checkpointing
    per_layer = job.wide * job.shape.hidden if checkpointing else layer_saved(job, _padding(job))
    return {"activations": math.ceil(job.tokens * job.shape.layers * per_layer)}


def recomputed(job: Job) -> dict[str, int]:
    """The layer whose backward pass is running: what it keeps, and the gradients that pass.

    They are largest in the MLP, where two of its width are on their way while its four inputs are
    still there; the stream's own gradient comes in, and is added to.
    """
    shape, policy = job.shape, job.settings.policy
    passing = 2 * job.narrow * shape.intermediate + 2 * job.wide * shape.hidden
    kept = layer_saved(job, _padding(job)) if policy.gradient_checkpointing else 0.0
    return {"recomputed layer": math.ceil(job.tokens * (kept + passing))}


def loss(job: Job) -> dict[str, int]:
    """The last norm, and the head: one chunk of float32 logits, and the gradients of its inputs.

    Both gradients wait in float32 and are then rounded to the type of the products. The chunk is
    gone by then, so the larger of the two counts. Frozen weights have no gradient.
    """
    shape = job.shape
    head = 0 if job.adapters else shape.head
    rounded = job.narrow * (head + job.tokens * shape.hidden)
    chunk = 4 * job.chunk_rows * shape.vocabulary
    return {
        "last hidden states": job.tokens * (4 + 2 * job.wide) * shape.hidden,
        "logits chunk": max(chunk, rounded),
        "head gradients": 4 * (head + job.tokens * shape.hidden),
    }


def weight_copies(job: Job, *, in_backward: bool) -> dict[str, int]:
    """Autocast's bfloat16 copies of float32 weights.

    It keeps all of them until the forward pass has ended, and the saved tensors of the graph keep
    them until theirs; a recomputed layer makes its own again.
    """
    if not job.autocast or job.adapters:
        return {}
    if in_backward and job.settings.policy.gradient_checkpointing:
        return {"bfloat16 weights": 2 * job.shape.layer}
    return {"bfloat16 weights": 2 * (job.shape.body + job.shape.head)}


def gathered(job: Job) -> dict[str, int]:
    """ZeRO-3: layers that are whole, and gradients that are not yet divided."""
    if not job.zero3:
        return {}
    largest = max(job.shape.head, job.shape.embedding)
    live = min(job.shape.parameters, max(largest, job.shape.layer) + job.shape.layer)
    waiting = 0 if job.adapters else max(REDUCE_BUCKET, largest)
    return {
        "gathered layers": 2 * live,
        "gradient buckets": 2 * min(waiting, job.shape.parameters),
    }


def optimizer_temporaries(job: Job) -> dict[str, int]:
    """What an optimizer step needs besides the states."""
    trained = math.ceil((job.adapters or job.shape.parameters) / job.ranks)
    if job.zero3:
        return {"optimizer temporaries": 4 * min(SUB_GROUP, trained)}
    # AdamW goes through the parameters in one fused-over-tensors call that needs a copy of them.
    return {"optimizer temporaries": 4 * trained}


def engine_weights(job: Job) -> dict[str, int]:
    """The sampling engine's own copy of the weights, in the settings' type."""
    size = 2 if job.settings.model.dtype == "bfloat16" else 4
    share = job.settings.rollout.tensor_parallel if job.vllm else 1
    return {"engine weights": math.ceil(size * job.shape.parameters / share)}


def asleep(job: Job) -> dict[str, int]:
    """What the engine holds while the policy trains; transformers keeps its weights."""
    if job.vllm:
        return {"sleeping engine": int(job.machine.asleep_gib * GIB)}
    return engine_weights(job)


def push(job: Job) -> dict[str, int]:
    """The largest matrix on its way into the engine: gathered, and in fresh storage."""
    largest = max(job.shape.embedding, job.shape.layer)
    return {"matrix in transit": 2 * (largest if job.zero3 else 0) + 2 * largest}


def engine_workspace(job: Job) -> int:
    """What sampling needs besides weights and cache.

    vLLM measures it with a prefill of as many tokens as it ever takes: the gated MLP's input and
    output, and four vectors of the stream; then the logits of every sequence in float32, the
    log-probs and the sampler's copy.
    """
    shape, rollout = job.shape, job.settings.rollout
    sampler = 3 * 4 * _live_sequences(job) * shape.vocabulary
    if not job.vllm:
        return sampler
    mlp = 3 * shape.intermediate // rollout.tensor_parallel
    prefill = 2 * VLLM_BATCHED_TOKENS * (mlp + 4 * shape.hidden)
    return prefill + sampler + int(job.machine.graphs_gib * GIB)


def kv_cache(job: Job) -> int:
    """Bytes of the KV cache: vLLM takes what its share of the GPU leaves, 0 if that is nothing."""
    if not job.vllm:
        size = 1 if job.settings.model.dtype == "bfloat16" else 2
        return size * _live_sequences(job) * job.longest * job.shape.kv_bytes_per_token()
    share = int(job.settings.rollout.gpu_memory_share * job.machine.usable)
    return max(0, share - sum(engine_weights(job).values()) - engine_workspace(job))


def kv_tokens(job: Job) -> int:
    """Tokens that one engine's KV cache holds."""
    parallel = job.settings.rollout.tensor_parallel if job.vllm else 1
    return kv_cache(job) // job.shape.kv_bytes_per_token(parallel)


def widest_share(job: Job) -> float:
    """The largest gpu_memory_share with which vLLM and the resident trainer fit; 0 if none."""
    resident = sum(states(job, in_rollout=True).values()) + job.machine.context
    return max(0.0, math.floor(100 * (1 - resident / job.machine.usable)) / 100)


def refuse_impossible(job: Job) -> None:
    """Raise a UserError for what no amount of memory would make possible, or is not counted."""
    if job.settings.rollout.placement == "separate":
        raise UserError(
            'rollout.placement = "separate" cannot be planned: engines are counted on the GPUs of '
            'the trainer; plan with "colocated"'
        )
    parallel, gpus = job.settings.rollout.tensor_parallel, job.machine.gpus
    if job.settings.policy.offload_during_rollout and not job.zero3:
        raise UserError(
            'policy.offload_during_rollout = true: expected policy.backend = "zero3", whose '
            "memory it is about; unset it"
        )
    if not job.zero3 and gpus > 1:
        raise UserError(
            f'policy.backend = "local" holds the policy in one process, but {gpus} GPUs were '
            'given; set policy.backend = "zero3", or plan for one'
        )
    if gpus % parallel or job.shape.heads % parallel or job.shape.kv_heads % parallel:
        raise UserError(
            f"rollout.tensor_parallel = {parallel} does not divide {gpus} GPUs, "
            f"{job.shape.heads} heads and {job.shape.kv_heads} key heads: use 1, or a divisor of "
            "all three"
        )


def _live_sequences(job: Job) -> int:
    """Sequences that one engine decodes together, at most."""
    rollout = job.settings.rollout
    engines = max(1, job.ranks // rollout.tensor_parallel)
    total = rollout.questions_per_step * rollout.votes
    return min(rollout.batch_size, math.ceil(total / engines))


def _padding(job: Job) -> float:
    """A batch with room for one sequence alone has no padding."""
    return PACKED_PADDING if job.tokens >= 2 * job.longest else 1.0
