"""Causal attention inside each sequence of a packed batch, as a transformers attention function.

Registered under the name `PACKED`; a model loaded with ``attn_implementation=PACKED`` runs on
packed batches, and its forward needs ``cu_seqlens`` and ``longest``. Each sequence gives what it
would give alone.

In half precision on a GPU a kernel for sequences of different lengths computes it: that of the
flash-attn package where it is installed, else PyTorch's own. Anywhere else the sequences are laid
out side by side, padded on the right; causality alone then keeps padding out of every real row, so
no mask is built.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ttrl.types import UserError

PACKED = "ttrl_packed"


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: None,
    *,
    cu_seqlens: torch.Tensor,
    longest: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of T packed rows, H query and K key heads; returns [1, T, H, D] and no weights.

    ``longest`` is the length of the longest sequence: reading it off ``cu_seqlens`` would make the
    host wait for the GPU, in every layer. Dropout is never applied: it would make the trained
    policy another one than the sampled one.

    Raises:
        NotImplementedError: for attention variants that this function does not compute.
        UserError: for a sequence longer than a sliding window.
    """
    unknown = {k for k, v in other.items() if v is not None and k in ("softcap", "s_aux")}
    if unknown:
        raise NotImplementedError(f"packed attention does not compute {sorted(unknown)}")
    # Under autocast the values come out of a product, but rotary positions made the others float32.
    query_1HTD, key_1KTD = query_1HTD.to(value_1KTD.dtype), key_1KTD.to(value_1KTD.dtype)
    if _has_varlen(query_1HTD):
        qkv_THD = [x[0].transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD)]
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        out_THD = _varlen_attention()(*qkv_THD, cu_seqlens, longest, scaling, window)
        return out_THD.unsqueeze(0), None
    if sliding_window is not None and longest > sliding_window:
        raise UserError(
            f"a sequence of {longest} tokens is longer than the model's sliding window "
            f"({sliding_window}): packed training does not compute windows; lower "
            "data.max_prompt_tokens or rollout.max_new_tokens, or train in bfloat16 on a GPU"
        )
    # place_T[t]: where row t goes in the padded [S * L] layout.
    lengths_S = cu_seqlens.diff()
    count = len(lengths_S)
    starts_T = cu_seqlens[:-1].repeat_interleave(lengths_S)
    sequence_T = torch.arange(count, device=starts_T.device).repeat_interleave(lengths_S)
    row_T = torch.arange(len(starts_T), device=starts_T.device)
    place_T = sequence_T * longest + row_T - starts_T

    out_SHLD = scaled_dot_product_attention(
        _side_by_side(query_1HTD, place_T, count, longest),
        _side_by_side(key_1KTD, place_T, count, longest),
        _side_by_side(value_1KTD, place_T, count, longest),
        is_causal=True,
        scale=scaling,
        enable_gqa=query_1HTD.shape[1] != key_1KTD.shape[1],
    )
    out_THD = out_SHLD.transpose(1, 2).flatten(0, 1).index_select(0, place_T)
    return out_THD.unsqueeze(0), None


def _has_varlen(query: torch.Tensor) -> bool:
    """Whether there is a kernel for sequences of different lengths: they know half precision."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


@cache
def _varlen_attention() -> Callable[..., torch.Tensor]:
    """Causal attention (query, key, value [T, heads, D], cu_seqlens, longest, scale, window).

    ``window`` is how many rows before and after its own a row sees, where -1 is all.
    """
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return _pytorch_varlen()
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:  # built for another torch, say
        raise UserError(
            f"flash-attn {version} is installed but does not load: {error}; build it for torch "
            f"{torch.__version__}, or remove it: PyTorch's own attention takes its place"
        ) from error

    def flash(q: Any, k: Any, v: Any, ends: Any, longest: int, scale: Any, window: Any) -> Any:
        lengths = (ends, ends, longest, longest)
        options = {"softmax_scale": scale, "causal": True, "window_size": window}
        return flash_attn_varlen_func(q, k, v, *lengths, **options, deterministic=True)

    return flash


def _pytorch_varlen() -> Callable[..., torch.Tensor]:
    """The same by PyTorch's own kernel."""
    from torch.nn.attention.varlen import varlen_attn

    knows_groups = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in torch 2.11

    def own(q: Any, k: Any, v: Any, ends: Any, longest: int, scale: Any, window: Any) -> Any:
        lengths = (ends, ends, longest, longest)
        options: dict[str, Any] = {"scale": scale, "window_size": window}
        if (group := q.shape[1] // k.shape[1]) > 1:
            if knows_groups:
                options["enable_gqa"] = True
            else:
                k, v = _for_each_query(k, group), _for_each_query(v, group)
        return varlen_attn(q, k, v, *lengths, **options)

    return own


def _for_each_query(x_TKD: torch.Tensor, group: int) -> torch.Tensor:
    """[T, K, D] -> [T, K * group, D]: the head that each query head shares with its neighbours."""
    return x_TKD.unsqueeze(2).expand(-1, -1, group, -1).flatten(1, 2)


def _side_by_side(
    x_1HTD: torch.Tensor, place_T: torch.Tensor, count: int, longest: int
) -> torch.Tensor:
    """[1, H, T, D] -> [S, H, L, D], zeros in the padding."""
    x_THD = x_1HTD[0].transpose(0, 1)
    padded = x_THD.new_zeros(count * longest, *x_THD.shape[1:])
    # index_copy has a plain gather as its gradient: deterministic, unlike that of indexing.
    x_SLHD = padded.index_copy(0, place_T, x_THD).view(count, longest, *x_THD.shape[1:])
    return x_SLHD.transpose(1, 2)


AttentionInterface.register(PACKED, packed_attention)
