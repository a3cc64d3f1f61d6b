"""The plan's byte counts against what torch holds, saves and allocates for real small models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import allocations
from tiny_models import make_settings, saved, tiny_model, train_samples, update
from transformers import PreTrainedModel
from ttrl_kernels import FusedLMHead, chunks, linear_policy_loss

from ttrl.learner.local import LocalModel
from ttrl.models.attention import PACKED
from ttrl.models.packed_model import load_policy_model, packed_hidden_states
from ttrl.models.recompute import recompute
from ttrl.plan import Machine, ModelShape
from ttrl.plan.memory import Job, activations, layer_saved, loss, recomputed, states, weight_copies
from ttrl.types import PackedSequences

SIZES = {"hidden_size": 64, "intermediate_size": 256, "head_dim": 16, "num_hidden_layers": 3}
LENGTHS = (256,) * 4
"""As long as each other, so that nothing is padded."""
APART = PackedSequences(torch.tensor([0, 256, 512, 768, 1024], dtype=torch.int32), 256)
PROMPT, OWN = 320, 240
SHARED = PackedSequences(
    torch.tensor([0, *range(PROMPT, PROMPT + 4 * OWN + 1, OWN)], dtype=torch.int32),
    PROMPT,
    torch.cat(
        [torch.arange(PROMPT)]
        + [
            torch.cat([torch.arange(PROMPT), PROMPT + n * OWN + torch.arange(OWN)])
            for n in range(4)
        ]
    ),
    torch.tensor([0, *range(PROMPT, PROMPT + 4 * (PROMPT + OWN) + 1, PROMPT + OWN)]).int(),
    PROMPT + OWN,
)
"""A prompt with four answers, which make for twice as many keys as there are rows."""


def make_job(
    model: PreTrainedModel, *, autocast: bool, trained_samples: int = 1, **policy: Any
) -> Job:
    """bfloat16 weights are ZeRO-3's, float32 ones under autocast the local backend's."""
    settings = make_settings(
        model={"dtype": "bfloat16"},
        update={
            "backend": "local" if autocast else "zero3",
            "tokens_per_batch": sum(LENGTHS),
            "trained_samples": trained_samples,
            "sequences_per_update": 4 * trained_samples,
            **policy,
        },
    )
    return Job(ModelShape.of(model), settings, Machine(1, 40))


def packed_model(
    kind: str, *, autocast: bool, checkpointing: bool = False, share: float = 1.0
) -> PreTrainedModel:
    model = tiny_model(kind, **SIZES).to(torch.float32 if autocast else torch.bfloat16).train()
    model.set_attn_implementation(PACKED)
    FusedLMHead.replace(model)
    if checkpointing:
        memory = {"gradient_checkpointing": True, "recompute_share": share}
        recompute(model, make_settings(memory=memory).memory)
    return model


def forward(
    model: PreTrainedModel, *, autocast: bool, sequences: PackedSequences = APART
) -> torch.Tensor:
    """The positions matter to no size."""
    rows = torch.arange(int(sequences.ends[-1]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return packed_hidden_states(model, rows % model.config.vocab_size, rows % 256, sequences)


def saved_bytes(
    model: PreTrainedModel, *, autocast: bool, sequences: PackedSequences = APART
) -> int:
    """Bytes of the storages that a forward pass keeps, weights and their copies aside."""
    sizes = {p.shape for p in model.parameters()} | {p.t().shape for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.shape not in sizes:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        forward(model, autocast=autocast, sequences=sequences)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(call: Callable[[], None]) -> int:
    """Most bytes in use at once of what the call allocates."""
    call()  # what is allocated once, on first use
    most, _ = allocations(call)
    return most


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_states_are_what_the_local_policy_holds_after_an_update(
    tmp_path: Path, kl_coef: float
) -> None:
    settings = make_settings(update={"kl_coef": kl_coef})
    policy = LocalModel(load_policy_model(saved(tiny_model(), tmp_path)), settings)
    update(policy, train_samples([(5, 7)] * 4), rate=1e-3)
    planned = states(Job(ModelShape.of(policy.model), settings, Machine(1, 40)))
    parameters = list(policy.model.parameters())
    assert planned["parameters"] == sum(p.nbytes for p in parameters)
    assert planned["gradients"] == sum(p.grad.nbytes for p in parameters if p.grad is not None)
    moments = [
        value
        for state in policy.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert planned["moments"] == sum(m.nbytes for m in moments)
    reference = policy.reference.parameters() if policy.reference is not None else ()
    assert planned["reference model"] == sum(p.nbytes for p in reference)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize(
    ("sequences", "samples", "padding"),
    [(APART, 1, 1.0), (SHARED, 4, 1.0)],
    ids=["apart", "a shared prompt"],
)
def test_a_layer_saves_what_the_formula_says(
    kind: str, autocast: bool, sequences: PackedSequences, samples: int, padding: float
) -> None:
    """Within 2 %: positions, cosines and sines are not counted."""
    model = packed_model(kind, autocast=autocast)
    deep = saved_bytes(model, autocast=autocast, sequences=sequences)
    model.base_model.layers = model.base_model.layers[:1]
    shallow = saved_bytes(model, autocast=autocast, sequences=sequences)
    per_token = (deep - shallow) / 2 / int(sequences.ends[-1])
    job = make_job(model, autocast=autocast, trained_samples=samples)
    assert layer_saved(job, padding=padding) == pytest.approx(per_token, rel=0.02)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_a_checkpointed_layer_saves_its_input(autocast: bool) -> None:
    model = packed_model("qwen2", autocast=autocast, checkpointing=True)
    deep = saved_bytes(model, autocast=autocast)
    model.base_model.layers = model.base_model.layers[:1]
    shallow = saved_bytes(model, autocast=autocast)
    job = make_job(model, autocast=autocast, gradient_checkpointing=True)  # of one layer
    assert deep - shallow == 2 * activations(job)["activations"]


@pytest.mark.parametrize(
    ("checkpointing", "share"), [(True, 1.0), (True, 0.6), (True, 0.3), (False, 1.0)]
)
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_the_peak_of_the_backward_pass(
    autocast: bool, checkpointing: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 8 %: gradients of the weights come in while activations go. On a CPU, sequences are
    laid side by side."""
    monkeypatch.setattr("ttrl.plan.memory._padding", lambda job: 1.0)
    model = packed_model("qwen2", autocast=autocast, checkpointing=checkpointing, share=share)
    job = make_job(
        model, autocast=autocast, gradient_checkpointing=checkpointing, recompute_share=share
    )

    def step() -> None:
        forward(model, autocast=autocast).float().sum().backward()
        model.zero_grad()

    parts = activations(job) | recomputed(job) | weight_copies(job, in_backward=True)
    assert sum(parts.values()) == pytest.approx(peak_bytes(step), rel=0.08)


@pytest.mark.parametrize("top_k", [0, 128])
def test_the_loss_holds_a_chunk_of_logits_and_both_gradients(top_k: int) -> None:
    """Within 5 %; a CPU's chunk is smaller than a GPU's, so it is put in. Supports come with the
    batch, in int32."""
    tokens, vocabulary, hidden = 1024, 4096, 64
    model = tiny_model(vocab_size=vocabulary, hidden_size=hidden)
    weight = model.get_output_embeddings().weight.detach().requires_grad_()
    hidden_TH = torch.randn(tokens, hidden, requires_grad=True)
    ones_T = torch.ones(tokens)
    support_TM = torch.arange(top_k, dtype=torch.int32).expand(tokens, top_k)

    def step() -> None:
        linear_policy_loss(
            hidden_TH,
            weight,
            torch.zeros(tokens, dtype=torch.int64),
            advantages_T=ones_T,
            token_weights_T=ones_T,
            support_TM=support_TM if top_k else None,
            backend="native",
        ).loss.backward()
        hidden_TH.grad = weight.grad = None

    job = make_job(model, autocast=True, tokens_per_batch=tokens)
    rows = chunks.even_rows(tokens, chunks.chunk_rows(hidden_TH, weight))
    planned = loss(job)["head gradients"] + 4 * rows * vocabulary
    if top_k:
        settings = job.settings.model_copy(
            update={"rollout": job.settings.rollout.model_copy(update={"top_k": top_k})}
        )
        with_batch = loss(replace(job, settings=settings))["supports"]
        planned += with_batch - top_k * (4 * tokens + 42 * (job.chunk_rows - rows))
    else:
        assert "supports" not in loss(job)
    assert planned == pytest.approx(peak_bytes(step), rel=0.05)


def test_the_chunk_is_the_kernels_own() -> None:
    model = tiny_model()
    job = make_job(model, autocast=False, tokens_per_batch=2**20)
    assert job.chunk_rows == chunks.LOGITS_BYTES // (4 * model.config.vocab_size)
