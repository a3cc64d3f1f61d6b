"""Bytes that the parts of a run take on a GPU, from first principles (derived in docs/plan.md).

When each of them is taken and given back is in `ttrl.plan.timeline`. Names of the sizes in the
formulas: T packed tokens, H hidden size, I intermediate size, Q and K numbers per token in queries
and in keys, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from ttrl_kernels.chunks import most_rows

from ttrl.learner.trained_model import needs_reference
from ttrl.learner.zero3 import REDUCE_BUCKET, SUB_GROUP
from ttrl.models.dealing import KEYS
from ttrl.models.recompute import recomputed_layers
from ttrl.plan.machine import GIB, Machine
from ttrl.plan.shape import ModelShape
from ttrl.plan.turns import Asked, Turns, turns_of
from ttrl.settings import Settings
from ttrl.settings.backend import backend_of, refuse_for_local
from ttrl.types import UserError

PACKED_PADDING = 1.2
"""Places over tokens where packed attention lays sequences side by side: in float32."""
VERIFIED_TOKENS = 32
"""Tokens of the answers that compare engine and policy: `ttrl.rollout.sampling.verifying`."""


@dataclass(frozen=True)
class Job:
    """The job that is planned: a model's shape, a run's settings, a machine."""

    shape: ModelShape
    settings: Settings
    machine: Machine
    judge: ModelShape | None = None
    """Of the reward model that the run loads."""
    known_turns: Turns | None = None
    """What is sampled to a question, once it is known: a user's own workflow is made once."""

    @cached_property
    def turns(self) -> Turns:
        """What is sampled to a question."""
        return self.known_turns or turns_of(self.settings, self.machine)

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What is sampled to a question, one after the other."""
        return self.turns.asked

    @property
    def zero3(self) -> bool:
        """Whether DeepSpeed spreads the states."""
        return backend_of(self.settings, launched=self.machine.gpus > 1) == "zero3"

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
        """Whether weights are float32 and matrix products bfloat16: the local backend's way."""
        return not self.zero3 and self.settings.model.dtype == "bfloat16"

    @property
    def wide(self) -> int:
        """Bytes of a number in the stream between layers, which has the weights' type."""
        return 2 if self.zero3 or (self.autocast and self.settings.lora.rank) else 4

    @property
    def narrow(self) -> int:
        """Bytes of a number in the matrix products."""
        return 2 if self.zero3 or self.autocast else 4

    @property
    def adapters(self) -> int:
        """Parameters of the LoRA adapters."""
        return (self.settings.lora.rank or 0) * self.shape.adapted

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: prompt and answer, within the model's context."""
        longest = self.settings.longest
        return min(longest, self.shape.context or longest)

    @property
    def recomputed(self) -> int:
        """Layers that recompute their activations."""
        return recomputed_layers(self.settings.memory, self.shape.layers)

    @property
    def tokens(self) -> int:
        """T: packed tokens in one forward pass."""
        return self.settings.memory.tokens_per_batch

    @property
    def chunk_rows(self) -> int:
        """Rows of the logits that exist at a time."""
        return min(self.tokens, most_rows(self.shape.vocabulary, torch.float32, on_cpu=False))


def states(job: Job) -> dict[str, int]:
    """Count the bytes of the trainer's weights, gradients and optimizer state.

    ZeRO-3 in bfloat16 holds 2 bytes per parameter, 2 of gradient, 4 of float32 master weights and 8
    of AdamW's two moments, divided by the ranks; the local backend 4, 4 and 8, all in float32. With
    LoRA those are of the adapters alone, on top of frozen weights, which are also the reference
    model of the KL term. With ``memory.offload_optimizer`` all that only the optimizer needs is in
    the host's memory, gradients included.
    """
    shape = job.shape
    frozen = job.narrow * shape.parameters if job.adapters else 0
    found = states_of(job, job.adapters or shape.parameters, frozen)
    size = (2 if job.zero3 else 4) * shape.parameters
    kept = size if needs_reference(job.settings) else 0
    return found | {"reference model": math.ceil(kept / job.ranks)}


def states_of(job: Job, trained: int, frozen: int) -> dict[str, int]:
    """Count the bytes of a model's state, with so many trained parameters and frozen bytes."""
    weight, master = (2, 4) if job.zero3 else (4, 0)
    items = {
        "parameters": weight * trained + frozen,
        "gradients": weight * trained,
        "master weights": master * trained,
        "moments": 8 * trained,
    }
    if job.settings.memory.offload_optimizer:
        del items["gradients"], items["master weights"], items["moments"]
    return {name: math.ceil(value / job.ranks) for name, value in items.items()}


def layer_saved(job: Job, padding: float = 0.0) -> float:
    """Count the bytes per token that a decoder layer keeps for its backward pass.

    Two norms keep their input in float32 and their result; each matrix product its input; attention
    queries, keys, values and its output, and one float32 number per head; the MLP four vectors of
    its width.

    Args:
        job: what is planned.
        padding: places over tokens where sequences are laid side by side, which copies all that
            attention keeps; 0 where they stay packed, one after the other.
    """
    shape, wide, narrow = job.shape, job.wide, job.narrow
    hidden, query, key = shape.hidden, shape.query, shape.key
    norms = 2 * ((4 + wide) * hidden + 4)
    # Autocast copies its input for each of the five products that read the stream.
    inputs = (5 if wide > narrow else 2) * narrow * hidden
    head_norms = 0
    if shape.head_norms:
        head_norms = (4 + narrow) * (query + key) + 4 * (shape.heads + shape.kv_heads)
    # Samples that share a prompt read its keys and values from copies of their own.
    keys = KEYS if job.settings.policy.trained_samples > 1 else 1
    turned = narrow * (query + 2 * keys * key)
    beside = 4.0 * shape.heads
    if padding:
        beside = padding * (narrow * (2 * query + 2 * keys * key) + 4 * shape.heads)
    mlp = 4 * narrow * shape.intermediate
    adapters = narrow * (job.settings.lora.rank or 0) * shape.adapted_matrices
    once = norms + inputs + head_norms + turned + narrow * query + mlp + adapters
    return once + beside


def activations(job: Job) -> dict[str, int]:
    """Count the bytes that layers leave for the backward pass: inputs, of those that recompute."""
    given, kept = job.wide * job.shape.hidden, layer_saved(job, _padding(job))
    all_layers = job.recomputed * given + (job.shape.layers - job.recomputed) * kept
    return {"activations": math.ceil(job.tokens * all_layers)}


def recomputed(job: Job) -> dict[str, int]:
    """Count the bytes of the layer whose backward pass is running: what it keeps, and gradients.

    The gradients that pass are largest in the MLP, where two of its width are on their way while
    its four inputs are still there; the stream's own gradient comes in, and is added to. Where some
    layers do not recompute, memory is fullest before the others do.
    """
    shape = job.shape
    passing = 2 * job.narrow * shape.intermediate + 2 * job.wide * shape.hidden
    kept = layer_saved(job, _padding(job)) if job.recomputed == shape.layers else 0.0
    return {"recomputed layer": math.ceil(job.tokens * (kept + passing))}


def loss(job: Job) -> dict[str, int]:
    """Count the bytes of the last norm and the head: one chunk of float32 logits, and gradients.

    The head reads a copy of the rows that it needs. The gradients of its weight and input wait in
    float32 and are then rounded to the type of the products, and those of the rows are put back in
    their places. The chunk is gone by then, so the larger of the two counts. Frozen weights have no
    gradient. Of the supports that ``rollout.top_k`` makes, the batch has ids in int32, the loss in
    int64, and two chunks those with their logits.
    """
    shape = job.shape
    head = 0 if job.adapters else shape.head
    rounded = job.narrow * head + (job.narrow + job.wide) * job.tokens * shape.hidden
    chunk = 4 * job.chunk_rows * shape.vocabulary
    members = job.settings.rollout.top_k
    supports = {"supports": members * (12 * job.tokens + 42 * job.chunk_rows)} if members else {}
    return supports | {
        "hidden states": job.tokens * (4 + 3 * job.wide) * shape.hidden,
        "logits chunk": max(chunk, rounded),
        "head gradients": 4 * (head + job.tokens * shape.hidden),
    }


def weight_copies(job: Job, *, in_backward: bool) -> dict[str, int]:
    """Count the bytes of autocast's bfloat16 copies of float32 weights.

    Autocast keeps all of them until the forward pass has ended, and the saved tensors of the graph
    keep them until the backward pass has used them; a recomputed layer makes its own again.
    """
    if not job.autocast or job.adapters:
        return {}
    shape = job.shape
    if in_backward and job.recomputed:
        kept = shape.layer * max(1, shape.layers - job.recomputed)
        return {"bfloat16 weights": 2 * kept}
    return {"bfloat16 weights": 2 * (shape.body + shape.head)}


def gathered(job: Job) -> dict[str, int]:
    """Count the bytes of ZeRO-3's whole layers, and of gradients that are not yet divided.

    Whole are a layer and the one that is fetched meanwhile; or the largest matrix and a layer.
    """
    if not job.zero3:
        return {}
    shape = job.shape
    largest = max(shape.head, shape.embedding)
    live = min(shape.parameters, max(largest, shape.layer) + shape.layer)
    waiting = 0 if job.adapters else max(REDUCE_BUCKET, largest)
    return {
        "gathered layers": 2 * live,
        "gradient buckets": 2 * min(waiting, shape.parameters),
    }


def optimizer_temporaries(job: Job) -> dict[str, int]:
    """Count the bytes that an optimizer step needs besides the states.

    They are one gradient of ZeRO-3's sub-groups in float32, or a sub-group's new weights on their
    way from the host. AdamW is fused, and needs nothing.
    """
    if not job.zero3:
        return {}
    trained = math.ceil((job.adapters or job.shape.parameters) / job.ranks)
    size = 2 if job.settings.memory.offload_optimizer else 4
    return {"temporaries": size * min(SUB_GROUP, trained)}


def loading(job: Job) -> dict[str, int]:
    """Count the bytes of a matrix out of the files, and as it is kept."""
    size = 2 if job.zero3 else job.narrow + 4
    return {"in transit": size * (2 if job.zero3 else 1) * largest_matrix(job)}


def largest_matrix(job: Job) -> int:
    """Count the numbers in the largest matrix."""
    shape = job.shape
    return max(shape.embedding, shape.head, shape.hidden * shape.intermediate)


def engine_weights(job: Job) -> dict[str, int]:
    """Count the bytes of the sampling engine's own copy of the weights, in the settings' type."""
    size = 2 if job.settings.model.dtype == "bfloat16" else 4
    share = job.settings.rollout.tensor_parallel if job.vllm else 1
    return {"engine weights": math.ceil(size * job.shape.parameters / share)}


def push(job: Job) -> dict[str, int]:
    """Count the bytes of weights on their way into the engine.

    They are whole out of their shares, in fresh storage, and as vLLM makes them of that: its share
    of a matrix, or of two that it keeps as one. A layer is gathered whole, and its gate and up
    projections are the largest pair.
    """
    shape = job.shape
    made = 1 / job.settings.rollout.tensor_parallel if job.vllm else 0
    pair = 2 * shape.hidden * shape.intermediate
    units = [(size, size) for size in (shape.embedding, shape.head)] + [(shape.layer, pair)]
    whole = 1 if job.zero3 else 0
    largest = max(whole * unit + part + made * part for unit, part in units)
    items = {"in transit": math.ceil(2 * largest)}
    if job.adapters:  # base and product are added up in float32
        items["merged matrix"] = 2 * 4 * shape.hidden * shape.intermediate
    return items


def verified(job: Job) -> dict[str, int]:
    """Count the bytes of the policy's log-probs of a short answer, beside an engine that is awake.

    No trace of the modules' order is complete yet: ZeRO-3 holds one of them whole, not a layer.
    """
    tokens = job.settings.data.max_prompt_tokens + VERIFIED_TOKENS
    rows = min(job.chunk_rows, tokens)
    items = {
        "logits chunk": 4 * rows * job.shape.vocabulary,
        "hidden states": tokens * (4 + 2 * job.wide) * job.shape.hidden,
    }
    if job.zero3:
        items["gathered layers"] = 2 * largest_matrix(job)
    return items | weight_copies(job, in_backward=False)


def prefill(job: Job) -> int:
    """Count the bytes that vLLM needs for its largest prefill, and for sampling.

    The gated MLP's input and output, and four vectors of the stream; then the logits of every
    sequence in float32, the log-probs and the sampler's copy.
    """
    shape, rollout = job.shape, job.settings.rollout
    sampler = 3 * 4 * _live_sequences(job) * shape.vocabulary
    if not job.vllm:
        return sampler
    mlp = 3 * shape.intermediate // rollout.tensor_parallel
    return 2 * _batched_tokens(job) * (mlp + 4 * shape.hidden) + sampler


def engine_share(job: Job) -> int:
    """Count the bytes that vLLM may have in all, and wants to find free when it starts."""
    return math.ceil(job.settings.rollout.gpu_memory_share * job.machine.usable)


def engine_overhead(job: Job) -> int:
    """Count the bytes that vLLM holds besides weights and cache, awake or asleep."""
    return int(job.machine.asleep_gib * GIB) if job.vllm else 0


def kv_cache(job: Job) -> int:
    """Count the bytes of the KV cache: what vLLM's share of the GPU leaves, or 0.

    The embedded engine's is in float32, and at its largest where all answers differ from the start.
    """
    if not job.vllm:
        return 2 * _live_sequences(job) * job.longest * job.shape.kv_bytes_per_token()
    rest = engine_share(job) - sum(engine_weights(job).values())
    return max(0, rest - engine_overhead(job) - prefill(job))


def kv_tokens(job: Job) -> int:
    """Count the tokens that one engine's KV cache holds."""
    parallel = job.settings.rollout.tensor_parallel if job.vllm else 1
    return kv_cache(job) // job.shape.kv_bytes_per_token(parallel)


def refuse_impossible(job: Job) -> None:
    """Raise a UserError for what no amount of memory would make possible, or is not counted."""
    if job.settings.rollout.placement == "separate":
        raise UserError(
            'rollout.placement = "separate" cannot be planned: engines are counted on the GPUs of '
            'the trainer; plan with "colocated"'
        )
    if not job.zero3:
        refuse_for_local(job.settings, job.machine.gpus, "GPUs were given", "plan for one")
    parallel, in_node = job.settings.rollout.tensor_parallel, job.machine.in_node
    if in_node % parallel or job.shape.heads % parallel or job.shape.kv_heads % parallel:
        raise UserError(
            f"rollout.tensor_parallel = {parallel} does not divide {in_node} GPUs of a node, "
            f"{job.shape.heads} heads and {job.shape.kv_heads} key heads: use 1, or a divisor of "
            "all three"
        )


def _live_sequences(job: Job) -> int:
    """Count the sequences that one engine decodes together, at most."""
    rollout = job.settings.rollout
    engines = max(1, job.ranks // rollout.tensor_parallel)
    total = rollout.questions_per_step * rollout.votes
    return min(rollout.batch_size, math.ceil(total / engines))


def _batched_tokens(job: Job) -> int:
    """Return the tokens in one prefill of vLLM: its own choice for a GPU of that size.

    An A100 of 80 GB gets the smaller one, and is planned with the larger.
    """
    return 16384 if job.machine.memory_gib >= 70 else 8192


def _padding(job: Job) -> float:
    """Return the padding of packed attention, as `layer_saved` takes it.

    A batch with room for one sequence alone has no padding.
    """
    if job.narrow == 2:
        return 0.0
    return PACKED_PADDING if job.tokens >= 2 * job.longest else 1.0
