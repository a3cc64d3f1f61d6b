"""Causal attention inside each sequence of a packed batch, as a transformers attention function.

Registered under the name `PACKED`; a model loaded with ``attn_implementation=PACKED`` runs on
packed batches, and its forward needs their ``sequences``. Each sample gives what it would give
alone; samples may share a prompt, whose keys and values are then read by all of them.

In half precision on a GPU a kernel for sequences of different lengths computes it: that of the
flash-attn package where it is installed, else PyTorch's own. Anywhere else the sequences are laid
out side by side, padded on the right; causality alone then keeps padding out of every real row, so
no mask is built, except for sequences that are longer than a sliding window. There a query of zeros
stands where a prompt's row would, whose own query is in another sequence.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from ttrl.types import PackedSequences, UserError

Lengths = tuple[torch.Tensor, torch.Tensor, int, int]
PACKED = "ttrl_packed"


HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions"}
"""Arguments of attention that change nothing here; `is_causal` is looked at."""


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sequences: PackedSequences | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over T packed rows with H query and K key heads; return [1, T, H, D], no weights.

    Dropout is never applied: it would make the trained policy another one than the sampled one.

    Raises:
        NotImplementedError: for attention variants that this function does not compute.
    """
    _refuse_variants(module, attention_mask, other)
    if sequences is None:
        raise NotImplementedError("its layers do not hand sequences on to their attention")
    # Under autocast the values come out of a product, but rotary positions made the others float32.
    query_1HTD, key_1KTD = query_1HTD.to(value_1KTD.dtype), key_1KTD.to(value_1KTD.dtype)
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD))
    if sequences.keys_K is not None:
        k_TKD, v_TKD = (x.index_select(0, sequences.keys_K) for x in (k_TKD, v_TKD))
    inputs = (q_THD, k_TKD, v_TKD, sequences, scaling, sliding_window)
    if _has_varlen(q_THD):
        return _varlen(*inputs).unsqueeze(0), None
    return _side_by_side(*inputs).unsqueeze(0), None


def _varlen(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    sequences: PackedSequences,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend with a kernel for sequences of different lengths."""
    reach = (-1 if sliding_window is None else sliding_window - 1, 0)
    size = v_TKD.shape[-1]  # that of queries and keys may be larger, and kernels know one
    v_TKD = v_TKD if size == k_TKD.shape[-1] else pad(v_TKD, (0, k_TKD.shape[-1] - size))
    out_THD = _varlen_attention()(q_THD, k_TKD, v_TKD, _lengths(sequences), scaling, reach)
    return out_THD[..., :size]


def _lengths(sequences: PackedSequences) -> Lengths:
    """Return what kernels want to know: the ends of queries and keys, and the longest of each."""
    if sequences.key_ends is None:
        return (sequences.ends, sequences.ends, sequences.longest, sequences.longest)
    return (sequences.ends, sequences.key_ends, sequences.longest, sequences.longest_keys)


def _side_by_side(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    sequences: PackedSequences,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend with `scaled_dot_product_attention`, over sequences that are padded to one length."""
    ends, key_ends, _, longest = _lengths(sequences)
    query_place_T = key_place_T = _places(key_ends, key_ends, longest, len(k_TKD))
    if ends is not key_ends:
        query_place_T = _places(ends, key_ends, longest, len(q_THD))
    count = len(ends) - 1
    group, band_LL = q_THD.shape[1] // k_TKD.shape[1], None
    if sliding_window is not None and longest > sliding_window:
        band_LL = _band(longest, sliding_window, q_THD.device)
        # With a mask, kernels that do not hold all scores at once know no groups of heads.
        k_TKD, v_TKD, group = _for_each_query(k_TKD, group), _for_each_query(v_TKD, group), 1
    out_SHLD = scaled_dot_product_attention(
        _padded(q_THD, query_place_T, count, longest),
        _padded(k_TKD, key_place_T, count, longest),
        _padded(v_TKD, key_place_T, count, longest),
        attn_mask=band_LL,
        is_causal=band_LL is None,
        scale=scaling,
        enable_gqa=group > 1,
    )
    return out_SHLD.transpose(1, 2).flatten(0, 1).index_select(0, query_place_T)


def packed_hidden_states(
    model: PreTrainedModel,
    token_ids_T: torch.Tensor,
    positions_T: torch.Tensor,
    sequences: PackedSequences,
) -> torch.Tensor:
    """Compute the last hidden states [T, H] of packed rows."""
    out = model.base_model(
        input_ids=token_ids_T.unsqueeze(0),
        position_ids=positions_T.unsqueeze(0),
        sequences=sequences,
        use_cache=False,
    )
    hidden_TH: torch.Tensor = out.last_hidden_state[0]
    return hidden_TH


def _refuse_variants(
    module: torch.nn.Module, mask: torch.Tensor | None, other: dict[str, Any]
) -> None:
    """Raise a NotImplementedError for what would change the result and is not computed."""
    asked = sorted(k for k, v in other.items() if v is not None and k not in HARMLESS)
    if asked:
        raise NotImplementedError(f"its attention asks for {', '.join(asked)}")
    if mask is not None:
        raise NotImplementedError("its attention has a mask, or a bias, of its own making")
    causal = other.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise NotImplementedError("its attention looks ahead (is_causal is false)")


def _places(ends: torch.Tensor, key_ends: torch.Tensor, longest: int, total: int) -> torch.Tensor:
    """Return where each packed row goes in the padded [S * L] layout: the last one by the last key.

    Args:
        ends: int32, S + 1 entries, of the rows to place.
        key_ends: those of the keys.
        longest: L.
        total: rows to place, which a GPU's host does not know.
    """
    lengths_S, key_lengths_S = ends.diff(), key_ends.diff()
    starts_S = torch.arange(len(lengths_S), device=ends.device) * longest - ends[:-1]
    starts_S += key_lengths_S - lengths_S
    starts_T = starts_S.repeat_interleave(lengths_S, output_size=total)
    return starts_T + torch.arange(total, device=ends.device)


def _band(longest: int, window: int, device: torch.device) -> torch.Tensor:
    """Make the [L, L] mask of which rows a row sees: its own, and the ``window - 1`` before it."""
    row_L = torch.arange(longest, device=device)
    behind_LL = row_L.unsqueeze(1) - row_L
    return (behind_LL >= 0) & (behind_LL < window)


def _has_varlen(query: torch.Tensor) -> bool:
    """Say whether a kernel for sequences of different lengths exists: they take half precision."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


@cache
def _varlen_attention() -> Callable[..., torch.Tensor]:
    """Return a function for causal attention over sequences of different lengths.

    Its arguments are (query, key, value [T, heads, D], `_lengths`, scale, window), where ``window``
    is how many rows before and after its own a row sees, and -1 is all.
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

    def flash(q: Any, k: Any, v: Any, lengths: Lengths, scale: Any, window: Any) -> Any:
        options = {"softmax_scale": scale, "causal": True, "window_size": window}
        return flash_attn_varlen_func(q, k, v, *lengths, **options, deterministic=True)

    return flash


def _pytorch_varlen() -> Callable[..., torch.Tensor]:
    """Return what `_varlen_attention` returns, by PyTorch's own kernel."""
    from torch.nn.attention.varlen import varlen_attn

    knows_groups = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in torch 2.11

    def own(q: Any, k: Any, v: Any, lengths: Lengths, scale: Any, window: Any) -> Any:
        options: dict[str, Any] = {"scale": scale, "window_size": window}
        if (group := q.shape[1] // k.shape[1]) > 1:
            if knows_groups:
                options["enable_gqa"] = True
            else:
                k, v = _for_each_query(k, group), _for_each_query(v, group)
        return varlen_attn(q, k, v, *lengths, **options)

    return own


def _for_each_query(x_TKD: torch.Tensor, group: int) -> torch.Tensor:
    """Repeat the head that query heads share for each of them: [T, K, D] -> [T, K * group, D]."""
    return x_TKD.unsqueeze(2).expand(-1, -1, group, -1).flatten(1, 2)


def _padded(x_THD: torch.Tensor, place_T: torch.Tensor, count: int, longest: int) -> torch.Tensor:
    """Lay sequences side by side, padded with zeros: [T, H, D] -> [S, H, L, D]."""
    padded = x_THD.new_zeros(count * longest, *x_THD.shape[1:])
    # index_copy has a plain gather as its gradient: deterministic, unlike that of indexing.
    x_SLHD = padded.index_copy(0, place_T, x_THD).view(count, longest, *x_THD.shape[1:])
    return x_SLHD.transpose(1, 2)


AttentionInterface.register(PACKED, packed_attention)
