"""Causal attention inside each sequence of a packed batch, as a transformers attention function.

Registered under the name `PACKED`; a model loaded with ``attn_implementation=PACKED`` runs on
packed batches, and its forward needs their ``sequences``. Each sample gives what it would give
alone; what samples begin with in common is there once, and all of them read its keys and values.

In half precision on a GPU a kernel for sequences of different lengths computes it: that of the
flash-attn package where it is installed, else PyTorch's own. Anywhere else sequences of like
lengths are laid out side by side, padded on the right; causality alone then keeps padding out of
every real row, so no mask is built, except for sequences that are longer than a sliding window, or
have more keys than queries.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
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
    """Attend with `scaled_dot_product_attention`, over sequences of like lengths at a time."""
    parts = _alike(sequences)
    outs = []
    for part in parts:
        padded = (part.queries.padded(q_THD), part.keys.padded(k_TKD), part.keys.padded(v_TKD))
        out_SLHD = _attend(*padded, part, scaling, sliding_window)
        outs.append(out_SLHD.flatten(0, 1).index_select(0, part.queries.places_T))
    rows_T = torch.cat([part.queries.rows_T for part in parts])
    return torch.cat(outs).index_select(0, rows_T.argsort())


def _attend(
    q_SLHD: torch.Tensor,
    k_SMKD: torch.Tensor,
    v_SMKD: torch.Tensor,
    part: _Part,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attend over S padded sequences of L queries and M keys; return [S, L, H, D]."""
    k_SKMD, v_SKMD = k_SMKD.transpose(1, 2), v_SMKD.transpose(1, 2)
    group = q_SLHD.shape[2] // k_SMKD.shape[2]
    if part.square and (sliding_window is None or part.keys.longest <= sliding_window):
        out_SHLD = scaled_dot_product_attention(
            q_SLHD.transpose(1, 2),
            k_SKMD,
            v_SKMD,
            is_causal=True,
            scale=scaling,
            enable_gqa=group > 1,
        )
        return out_SHLD.transpose(1, 2)
    # With a mask, kernels that do not hold all scores at once know no groups of heads.
    mask_S1LM = part.mask(sliding_window, q_SLHD.dtype)
    outs = [
        scaled_dot_product_attention(
            q_SLKD.transpose(1, 2), k_SKMD, v_SKMD, attn_mask=mask_S1LM, scale=scaling
        )
        for q_SLKD in q_SLHD.unflatten(2, (-1, group)).unbind(3)
    ]
    return torch.stack(outs, 2).flatten(1, 2).transpose(1, 2)


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


class _Runs:
    """Runs of packed rows, one for each of S sequences, that are laid side by side."""

    def __init__(self, starts: list[int], lengths: list[int], device: torch.device) -> None:
        """Take the runs that start at these rows and have these lengths."""
        self.lengths, self.longest = lengths, max(lengths)
        runs = [np.arange(n) for n in lengths]
        rows = np.concatenate([start + run for start, run in zip(starts, runs, strict=True)])
        places = np.concatenate([s * self.longest + run for s, run in enumerate(runs)])
        self.rows_T = torch.from_numpy(rows).to(device)
        """Which packed rows they are."""
        self.places_T = torch.from_numpy(places).to(device)
        """Where they go in the padded [S * longest] layout."""

    def padded(self, x_THD: torch.Tensor) -> torch.Tensor:
        """Lay the runs side by side, padded with zeros behind: [T, H, D] -> [S, longest, H, D]."""
        if len(self.rows_T) < len(x_THD):
            x_THD = x_THD.index_select(0, self.rows_T)
        padded = x_THD.new_zeros(len(self.lengths) * self.longest, *x_THD.shape[1:])
        # index_copy has a plain gather as its gradient: deterministic, unlike that of indexing.
        filled = padded.index_copy(0, self.places_T, x_THD)
        return filled.view(-1, self.longest, *x_THD.shape[1:])


class _Part:
    """Some of the sequences, whose lengths differ by less than twice."""

    def __init__(self, queries: _Runs, keys: _Runs) -> None:
        """Take the sequences' queries and keys, in the same order."""
        self.queries, self.keys = queries, keys
        self.square = queries.lengths == keys.lengths
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}

    def mask(self, sliding_window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return the [S, 1, L, M] mask of the keys that each query sees, up to its own.

        It is added to the scores, and the same for all layers: they keep it for their backward.
        """
        if (mask_S1LM := self._masks.get((sliding_window, dtype))) is None:
            device = self.keys.rows_T.device
            last_S1 = torch.tensor(self.keys.lengths, device=device)[:, None] - 1
            first_S1 = last_S1 + 1 - torch.tensor(self.queries.lengths, device=device)[:, None]
            # Padding sees the last key: of a query that sees none, some kernels make NaN.
            own_SL = (first_S1 + torch.arange(self.queries.longest, device=device)).minimum(last_S1)
            key_M = torch.arange(self.keys.longest, device=device)
            hidden_SLM = key_M > own_SL[:, :, None]
            if sliding_window is not None:
                hidden_SLM |= key_M <= own_SL[:, :, None] - sliding_window
            mask_SLM = torch.zeros(hidden_SLM.shape, dtype=dtype, device=device)
            mask_S1LM = mask_SLM.masked_fill_(hidden_SLM, -torch.inf).unsqueeze(1)
            self._masks[sliding_window, dtype] = mask_S1LM
        return mask_S1LM


@lru_cache(maxsize=1)  # for all layers of a batch
def _alike(sequences: PackedSequences) -> list[_Part]:
    """Divide the sequences into parts, by the powers of two that queries and keys fill."""
    device, (ends, key_ends, *_) = sequences.ends.device, _lengths(sequences)
    starts, key_starts = ends.tolist(), key_ends.tolist()
    lengths, key_lengths = ends.diff().tolist(), key_ends.diff().tolist()
    parts: dict[tuple[int, int, bool], list[int]] = {}
    for s, (length, keys) in enumerate(zip(lengths, key_lengths, strict=True)):
        kind = (length.bit_length(), keys.bit_length(), length == keys)
        parts.setdefault(kind, []).append(s)
    return [
        _Part(
            _Runs([starts[s] for s in chosen], [lengths[s] for s in chosen], device),
            _Runs([key_starts[s] for s in chosen], [key_lengths[s] for s in chosen], device),
        )
        for chosen in parts.values()
    ]


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


AttentionInterface.register(PACKED, packed_attention)
