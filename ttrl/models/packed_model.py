"""The forward pass of a transformers causal LM over packed sequences."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from ttrl_kernels import FusedLMHead

from ttrl.models.attention import PACKED, packed_hidden_states
from ttrl.models.pretrained import context_room, load_model
from ttrl.models.probe import (
    SHORT,
    explain,
    listen,
    one_line,
    own_logprobs,
    packed_logprobs,
    probes,
    saved_buffers,
    suspects,
)
from ttrl.settings import ModelSettings
from ttrl.types import PackedBatch, UserError

SAME = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""How far log-probs may differ for rounding alone, by the type of the weights. In float32 each of
them; in bfloat16 their mean: of real models, single ones are further off."""

ANY_LENGTH = 2**20
"""Length of the sequences of a run that names none, where the model has no limit either."""


def load_policy_model(
    settings: ModelSettings,
    dtype: torch.dtype = torch.float32,
    *,
    longest: int | None = None,
    liger: bool = False,
) -> PreTrainedModel:
    """Load the model, for packed training only, without dropout, with a `FusedLMHead`.

    Args:
        settings: which model.
        dtype: of its weights.
        longest: how many tokens a sequence may have; by default, as many as the model can take.
        liger: let Liger's kernels compute norms, rotary positions and MLPs, see `use_liger`.

    Raises:
        UserError: if the log-probs of sequences packed together differ from those of the model's
            own logits for each sequence alone: then its attention or its output layer does
            something that our packed forward leaves out, and training would be silently wrong.
    """
    model = load_model(settings, dtype)
    make_packed(model, settings, longest=longest, liger=liger)
    return model


def make_packed(
    model: PreTrainedModel,
    settings: ModelSettings,
    *,
    longest: int | None = None,
    liger: bool = False,
    whole: AbstractContextManager[None] | None = None,
) -> None:
    """Prepare a model of the settings as `load_policy_model` does, and check it.

    Args:
        model: as transformers made it; divided over ranks, which then call this together, or not.
        settings: which model.
        longest: see `load_policy_model`.
        liger: see `use_liger`.
        whole: inside, a divided model can run.

    Raises:
        UserError: if its own log-probs are not those of packed sequences, or it fails on its way.
    """
    room = context_room(model)
    longest = min(longest or ANY_LENGTH, ANY_LENGTH if room is None else room.tokens)
    try:
        cause = saved_buffers(model)
        if cause is None:
            with whole or nullcontext():
                cause = _tried(model, longest, liger)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # models of every kind end here, and fail in as many ways
        raise _refused(model, settings, one_line(error)) from error
    if cause is not None:
        raise _refused(model, settings, cause)


def _refused(model: PreTrainedModel, settings: ModelSettings, cause: str) -> UserError:
    return UserError(f"{type(model).__name__} ({settings.path}) cannot be trained here: {cause}")


def _tried(model: PreTrainedModel, longest: int, liger: bool) -> str | None:
    """Make the model's forward a packed one, and try it.

    Returns:
        Why it would not be the model's own, or None.
    """
    make_still(model)
    own = model.config._attn_implementation
    if model.base_model is model:
        return f"transformers finds no base model in it ({model.base_model_prefix!r} is none)"
    own_logprobs(model, [SHORT])  # what fails here is not for want of anything of ours
    FusedLMHead.replace(model)
    heard, error = listen(model, longest)
    if (cause := explain(heard, error)) is not None:
        return cause
    tried = probes(heard, model.config.get_text_config().vocab_size)
    model.set_attn_implementation(own)
    own_N = own_logprobs(model, tried)
    model.set_attn_implementation(PACKED)
    if liger:
        use_liger(model)
    gaps_N, same = (own_N - packed_logprobs(model, tried)).abs(), SAME[model.dtype]
    gap = (gaps_N.max() if model.dtype == torch.float32 else gaps_N.mean()).item()
    if gap < same:
        return None
    model.set_attn_implementation(own)
    return (
        f"packed log-probs differ from the model's own by {gap:.3g} (expected < {same}); "
        f"of its config, this may be left out here: {suspects(model)}"
    )


def make_still(model: PreTrainedModel) -> None:
    """Let nothing random act in the forward: no dropout, no noise at routers, no layer left out.

    The policy that is trained would be another one than the sampled one. Layers alone are in
    training mode, or they would not recompute (`memory.gradient_checkpointing`).
    """
    model.eval()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if type(value) is float and ("drop" in name or isinstance(module, torch.nn.Dropout)):
                setattr(module, name, 0.0)
        module.training = isinstance(module, GradientCheckpointingLayer)


def use_liger(model: PreTrainedModel) -> None:
    """Replace the norms, rotary positions and MLPs of ``model`` by Liger's Triton kernels.

    Raises:
        UserError: without a GPU or liger-kernel, or where it does not know this kind of model.
    """
    asked = "memory.liger_kernels = true"
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
        """Compute what `FusedLMHead.forward` gives for the batch's trained tokens."""
        # Adapters may be float32 beside a frozen base of another type.
        autocast = any(p.dtype != self.products for p in self.model.parameters())
        with torch.autocast(self.model.device.type, self.products, enabled=autocast):
            hidden_RH = packed_hidden_states(
                self.model, batch.token_ids_R, batch.positions_R, batch.sequences
            )
            hidden_TH = hidden_RH.index_select(0, batch.rows_T)
            return self.model.get_output_embeddings()(hidden_TH, batch.targets_T, **options)
