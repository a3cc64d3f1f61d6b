"""Tiny random models of the architectures that transformers has, and what is expected of each."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ttrl.models.pretrained import explained
from ttrl.settings import ModelSettings

EXPECTED: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
"""By name: ``kind`` of the architecture where that is not the name; ``config``, which changes the
small sizes; ``model``, for the reader; ``refused``, the cause, or none where it trains."""

VOCABULARY = 64
WINDOW = 16

_NAMES: dict[Any, str] = {
    VOCABULARY: "vocab_size",
    32: "hidden_size d_model n_embd embedding_size word_embed_proj_dim",
    48: "intermediate_size ffn_dim n_inner ffn_hidden_size dense_intermediate_size",
    128: "max_position_embeddings n_positions",
    WINDOW: (
        "sliding_window window_size attention_chunk_size local_attention attention_window_size "
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size "
        "shared_intermediate_size intermediate_size_mlp q_lora_rank"
    ),
    4: (
        "num_hidden_layers n_layer n_layers num_layers num_attention_heads n_head n_heads "
        "num_heads num_experts num_local_experts n_routed_experts moe_num_experts "
        "qk_rope_head_dim rotary_dim"
    ),
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk",
    1: "n_shared_experts n_group topk_group first_k_dense_replace",
    8: "head_dim kv_lora_rank qk_nope_head_dim v_head_dim",
    0.4: "initializer_range init_std",
    None: "bos_token_id eos_token_id pad_token_id",
}
SMALL = {name: value for value, names in _NAMES.items() for name in names.split()}


def settings(name: str) -> ModelSettings:
    return ModelSettings(path=name, dtype="float32")


def tiny(name: str) -> PreTrainedModel:
    """The model called so, in float32, as `ttrl.models.pretrained.load_model` would make it.

    Whatever can act at random, acts by its configuration; no parameter is all zeros or ones.
    """
    kind = EXPECTED[name].get("kind", name)
    fields = {f.name: f.default for f in dataclasses.fields(CONFIG_MAPPING[kind])}
    noise = {n: 0.3 for n, d in fields.items() if ("drop" in n or "jitter" in n) and d is not None}
    sizes = {n: value for n, value in SMALL.items() if n in fields or n.endswith("token_id")}
    changes = {n: None if v == "none" else v for n, v in EXPECTED[name].get("config", {}).items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with explained(settings(name)):
            config = AutoConfig.for_model(kind, **{**noise, **sizes, **changes})
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa"
            )
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def table() -> str:
    """The table of docs/models.md: what trains, and by cause what is refused."""
    groups: dict[str, list[str]] = {"**trains**": []}
    for name, expected in EXPECTED.items():
        kind, about = expected.get("kind", name), expected.get("about")
        words = f"`{kind}`" if about is None else f"`{kind}` ({about})"
        cause = expected.get("refused")
        groups.setdefault("**trains**" if cause is None else f"…{cause}…", []).append(words)
    rows = [f"| {group} | {len(names)}: {', '.join(names)} |" for group, names in groups.items()]
    return "\n".join(["| what the run does, or says at its end | model_type |", "|---|---|", *rows])
