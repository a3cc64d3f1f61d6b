"""The embedded model with attention heads of 32 numbers: vLLM has none of 24 on a CPU."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ttrl.pretrained import TINY_BASE

WIDE = 32


def save_wide_base(folder: Path) -> None:
    """The same function of its tokens as the embedded model, up to rounding, padded with zeros.

    Rotary pairs keep their places in each half of a head, and their frequencies by another base.
    Scores are divided by the root of the head's size, and norms by that of the hidden size: the
    weights make up for both.
    """
    narrow = AutoModelForCausalLM.from_pretrained(TINY_BASE)
    config = AutoConfig.from_pretrained(TINY_BASE)
    heads, head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    grown = WIDE / head
    config.hidden_size = WIDE * heads
    config.rms_norm_eps /= grown
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0**grown}
    wide = AutoModelForCausalLM.from_config(config)
    for name, parameter in wide.named_parameters():
        weight = narrow.get_parameter(name).detach()
        if name.endswith("norm.weight"):
            weight = weight / math.sqrt(grown)
        if "q_proj" in name:
            weight = weight * math.sqrt(grown)
        if any(p in name for p in ("q_proj", "k_proj", "v_proj")):
            weight = _wide_heads(weight, head)
        if "o_proj" in name:
            weight = _wide_heads(weight.T, head).T
        parameter.data.zero_()
        parameter.data[tuple(slice(n) for n in weight.shape)] = weight
    wide.generation_config = narrow.generation_config
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY_BASE).save_pretrained(folder)


def _wide_heads(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Rows of heads, [heads * head, ...], with zeros behind each half of a head."""
    halves = rows.reshape(-1, 2, head // 2, *rows.shape[1:])
    zeros = halves.new_zeros(len(halves), 2, (WIDE - head) // 2, *rows.shape[1:])
    return torch.cat([halves, zeros], dim=2).reshape(-1, *rows.shape[1:])
