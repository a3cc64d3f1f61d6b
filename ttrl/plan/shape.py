"""The numbers of a model that decide how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ttrl.types import UserError


@dataclass(frozen=True)
class ModelShape:
    """Counts of a dense decoder-only transformer with gated MLPs; parameters, not bytes."""

    parameters: int
    """Parameters in all; a tied matrix counts once."""
    embedding: int
    """The input embedding."""
    head: int
    """The output matrix, which a tied model shares with the embedding."""
    tied: bool
    layer: int
    """The largest decoder layer."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    head_norms: bool
    """Queries and keys are normalized per head, as in Qwen3."""
    vocabulary: int
    context: int | None
    """Tokens that prompt and answer may have together."""
    adapted: int
    """Rows plus columns of all matrices in the layers: what one rank of LoRA adds."""
    adapted_matrices: int
    """The number of those matrices in one layer."""

    @property
    def query(self) -> int:
        """Numbers per token in the queries of a layer."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Numbers per token in the keys of a layer; the values have as many."""
        return self.kv_heads * self.head_dim

    @property
    def body(self) -> int:
        """Parameters that are multiplied with every token, the head aside."""
        return self.parameters - self.embedding - (0 if self.tied else self.head)

    def kv_bytes_per_token(self, tensor_parallel: int = 1) -> int:
        """Count a token's bytes of keys and values in bfloat16, on one of the engine's GPUs."""
        return 2 * 2 * self.layers * self.key // tensor_parallel

    @classmethod
    def of(cls, outline: PreTrainedModel) -> ModelShape:
        """Read the shape of a model, whose weights may be on the meta device.

        Raises:
            UserError: for an architecture whose activations the formulas do not describe, and for
                sizes that no model has.
        """
        config, layers = outline.config, getattr(outline.base_model, "layers", None)
        kind = type(outline).__name__
        embed: Any = outline.get_input_embeddings()
        head: Any = outline.get_output_embeddings()
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        lacking = [name for name in names if not isinstance(getattr(config, name, None), int)]
        if not isinstance(layers, torch.nn.ModuleList) or head is None or lacking:
            raise UserError(f"cannot plan a {kind}: expected a decoder with {', '.join(names)}")
        if any("expert" in name for name, _ in layers.named_modules()):
            raise UserError(f"cannot plan a {kind}: only models without experts are known")
        heads = config.num_attention_heads
        context = getattr(config, "max_position_embeddings", None)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
        counts = {
            **{name: getattr(config, name) for name in names},
            "num_hidden_layers": len(layers),
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 1 if context is None else context,
        }
        for name, count in counts.items():
            if not (isinstance(count, int) and count >= 1):
                raise UserError(f"cannot plan a {kind} with {name} = {count}: expected 1 or more")
        if heads % kv_heads:
            raise UserError(
                f"cannot plan a {kind} with num_key_value_heads = {kv_heads}: expected a divisor "
                f"of num_attention_heads = {heads}"
            )
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        matrices = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
        return cls(
            parameters=sum(p.numel() for p in outline.parameters()),
            embedding=embed.weight.numel(),
            head=head.weight.numel(),
            tied=head.weight is embed.weight,
            layer=max(sizes),
            layers=len(layers),
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            head_norms=any(name.endswith("q_norm.weight") for name, _ in layers.named_parameters()),
            vocabulary=head.weight.shape[0],
            context=context,
            adapted=sum(m.in_features + m.out_features for m in matrices),
            adapted_matrices=len(matrices) // len(layers),
        )
