"""The forward pass of a transformers causal LM over packed sequences."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel
from ttrl_kernels import FusedLMHead

from ttrl.config import ModelSettings
from ttrl.policy.attention import PACKED
from ttrl.pretrained import load_model
from ttrl.types import PackedBatch, UserError

PROBE = ((1, 4, 2, 8, 5, 7), (3, 1, 4, 1))
"""Token ids of two sequences; every vocabulary has them."""


def load_policy_model(
    settings: ModelSettings, dtype: torch.dtype = torch.float32, *, liger: bool = False
) -> PreTrainedModel:
    """The model, for packed training only, without dropout, with a `FusedLMHead`.

    Args:
        settings: which model.
        dtype: of its weights.
        liger: let Liger's kernels compute norms, rotary positions and MLPs, see `use_liger`.

    Raises:
        UserError: if the log-probs of sequences packed together differ from those of the model's
            own logits for each sequence alone: then its attention or its output layer does
            something that our packed forward leaves out, and training would be silently wrong.
    """
    model = load_model(settings, dtype)
    make_packed(model, settings, liger=liger)
    return model


def make_packed(
    model: PreTrainedModel,
    settings: ModelSettings,
    *,
    liger: bool = False,
    whole: AbstractContextManager[None] | None = None,
) -> None:
    """Prepare a model of the settings as `load_policy_model` does, and check it.

    Args:
        model: as transformers made it; divided over ranks, which then call this together, or not.
        settings: which model.
        liger: see `use_liger`.
        whole: inside, a divided model can run.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # attention's own is left out by packed_attention
            module.p = 0.0
    refused = f"{type(model).__name__} ({settings.path}) cannot be trained here: "
    if lost := _saved_buffers(model):
        raise UserError(
            f"{refused}{lost[0]} and {len(lost) - 1} others are saved with its weights and are no "
            "parameters: they would not reach the rollout engine"
        )
    with whole or nullcontext():
        own_T = _own_logprobs(model)
        model.set_attn_implementation(PACKED)
        if liger:
            use_liger(model)
        try:
            FusedLMHead.replace(model)
            # In training mode, so that dropout which is not a module of its own shows as well.
            gap = (own_T - _packed_logprobs(model.train())).abs().max().item()
        except (NotImplementedError, TypeError) as error:  # TypeError: cu_seqlens or head unknown
            raise UserError(f"{refused}{error}") from error
    same = SAME[model.dtype]
    if not gap < same:
        raise UserError(
            f"{refused}packed log-probs differ from the model's own by up to {gap:.3g} "
            f"(expected < {same})"
        )


def _saved_buffers(model: PreTrainedModel) -> list[str]:
    """What belongs to the weights of a model beside its parameters."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return sorted(model.state_dict().keys() - parameters)


SAME = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""By type of the weights: by how much log-probs may differ for rounding alone."""


def use_liger(model: PreTrainedModel) -> None:
    """Replace the norms, rotary positions and MLPs of ``model`` by Liger's Triton kernels.

    Raises:
        UserError: without a GPU or liger-kernel, or where it does not know this kind of model.
    """
    asked = "policy.liger_kernels = true"
    if model.device.type != "cuda":
        raise UserError(f"{asked} needs an NVIDIA GPU; unset it")
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise UserError(f"{asked}: {error}; install it: bash scripts/setup.sh liger") from error
    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"{asked}: liger-kernel has none for models of the type {kind!r}; unset it")
    # What else there is to replace differs by kind (SwiGLU, GeGLU, no MLP at all): its defaults
    # know. The output layer and its loss are ours.
    MODEL_TYPE_TO_APPLY_LIGER_FN[kind](
        model=model, cross_entropy=False, fused_linear_cross_entropy=False
    )


class PackedModel(torch.nn.Module):
    """A causal LM as a function of packed batches: its `FusedLMHead` is part of the forward."""

    def __init__(self, model: PreTrainedModel, products: torch.dtype) -> None:
        """Run ``model``, with matrix products in the type ``products``, whatever its weights'."""
        super().__init__()
        self.model = model
        self.products = products

    def forward(self, batch: PackedBatch, **options: Any) -> Any:
        """What the head gives for the batch's rows and targets, see `FusedLMHead.forward`."""
        # Adapters may be float32 beside a frozen base of another type.
        autocast = any(p.dtype != self.products for p in self.model.parameters())
        with torch.autocast(self.model.device.type, self.products, enabled=autocast):
            hidden_TH = packed_hidden_states(
                self.model,
                batch.token_ids_T,
                batch.positions_T,
                batch.cu_seqlens,
                batch.longest,
            )
            return self.model.get_output_embeddings()(hidden_TH, batch.targets_T, **options)


def packed_hidden_states(
    model: PreTrainedModel,
    token_ids_T: torch.Tensor,
    positions_T: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """The last hidden states [T, H] of packed sequences, the longest of which has so many rows."""
    out = model.base_model(
        input_ids=token_ids_T.unsqueeze(0),
        position_ids=positions_T.unsqueeze(0),
        cu_seqlens=cu_seqlens,
        longest=longest,
        use_cache=False,
    )
    hidden_TH: torch.Tensor = out.last_hidden_state[0]
    return hidden_TH


@torch.no_grad()
def _own_logprobs(model: PreTrainedModel) -> torch.Tensor:
    """Log-probs of the probe's tokens, from the second of each sequence on, one by one."""
    logp = []
    for sequence in PROBE:
        ids_T = torch.tensor(sequence, device=model.device)
        logits_TV = model(input_ids=ids_T.unsqueeze(0)).logits[0, :-1].float()
        logp.append(logits_TV.log_softmax(-1).gather(1, ids_T[1:].unsqueeze(1)).squeeze(1))
    return torch.cat(logp)


@torch.no_grad()
def _packed_logprobs(model: PreTrainedModel) -> torch.Tensor:
    """The same, packed."""
    ids_T = torch.tensor(sum(PROBE, ()), device=model.device)
    lengths_S = torch.tensor([len(s) for s in PROBE], device=model.device)
    ends_S = lengths_S.cumsum(0)
    cu_seqlens = torch.nn.functional.pad(ends_S, (1, 0)).to(torch.int32)
    positions_T = torch.cat([torch.arange(len(s), device=model.device) for s in PROBE])
    longest = max(map(len, PROBE))
    hidden_TH = packed_hidden_states(model, ids_T, positions_T, cu_seqlens, longest)
    logp_T: torch.Tensor = model.get_output_embeddings()(hidden_TH[:-1], ids_T[1:]).logp_T
    inside_T = torch.ones_like(logp_T, dtype=torch.bool)
    inside_T[ends_S[:-1] - 1] = False  # a sequence's last token does not predict the next one's
    return logp_T[inside_T]
