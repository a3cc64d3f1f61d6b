"""Stand-ins for attention kernels of CUDA: they take the calls that the real ones take.

Each has the signature of the real function, refuses what that refuses, and computes the same
numbers from all scores at once, in float32. The signatures were copied from

- torch 2.11.0 and 2.13.0, ``torch/nn/attention/varlen.py`` of their wheels;
- flash-attn 2.8, ``flash_attn/flash_attn_interface.py``.

`test_varlen.py` compares that of 2.13 with the installed one.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.attention.varlen
from pretended_gpu import on_cpu, on_gpu

HALF = (torch.bfloat16, torch.float16)

Tensor = torch.Tensor


@dataclass
class Seen:
    """What the kernels were asked for."""

    forward: int = 0
    backward: int = 0
    ordered: int = 0
    """Backward passes with a fixed order of sums."""
    windows: int = 0
    """Forward passes in which not all earlier rows were seen."""


seen = Seen()


# ---------------------------------------------------------------------------------------------
# The functions


def torch_2_13(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn` of torch 2.13."""
    _refuse_options(return_aux, seqused_k, block_table, num_splits)
    queries, keys = query.shape[1], key.shape[1]
    if queries != keys and not (enable_gqa and queries % keys == 0):
        raise ValueError(
            f"Expect query and key/value to have the same number of heads but got Hq={queries} "
            f"and Hkv={keys}. Try setting enable_gqa=True for GQA."
        )
    assert cu_seq_k is not None
    return _of_torch(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def torch_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The same of torch 2.11: more query heads than key heads are nothing special there."""
    _refuse_options(return_aux)
    return _of_torch(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def flash_2_8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """`flash_attn.flash_attn_varlen_func` of flash-attn 2.8."""
    _refuse_options(dropout_p, softcap, alibi_slopes, return_attn_probs, block_table)
    left, right = window_size
    window = (left, 0 if causal else right)
    _check(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
    ends = (cu_seqlens_q, cu_seqlens_k)
    return _attend(q, k, v, *ends, softmax_scale, window, deterministic)


def put_in(torch_own: Any = torch_2_13, flash: Path | None = None) -> None:
    """Make these the functions that an import finds, and forget which one was chosen before.

    Args:
        torch_own: what PyTorch's own is.
        flash: where flash-attn is to be installed; None: it is not.
    """
    torch.nn.attention.varlen.varlen_attn = torch_own
    if flash is not None:
        (flash / "flash_attn").mkdir(parents=True)
        source = "from varlen import flash_2_8 as flash_attn_varlen_func"
        (flash / "flash_attn" / "__init__.py").write_text(f"{source}\n", encoding="utf-8")
        information = flash / "flash_attn-2.8.3.dist-info"
        information.mkdir()
        text = "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n"
        (information / "METADATA").write_text(text, encoding="utf-8")
        sys.path.insert(0, str(flash))
    else:
        sys.path[:] = [p for p in sys.path if not (Path(p) / "flash_attn").is_dir()]
    ours = sys.modules.get("ttrl.models.attention")
    for value in vars(ours).values() if ours is not None else ():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


# ---------------------------------------------------------------------------------------------
# What they refuse


def _refuse_options(*options: Any) -> None:
    if any(option not in (None, False, 0.0) for option in options):
        raise NotImplementedError(f"the stand-in does not know these options: {options}")


def _check(
    query: Tensor, key: Tensor, value: Tensor, ends: tuple[Tensor, ...], longest: tuple[int, ...]
) -> None:
    """Raise a RuntimeError for what the kernels cannot read."""
    for name, x in {"query": query, "key": key, "value": value}.items():
        if not x.is_cuda or x.dtype not in HALF or x.dtype != query.dtype:
            raise RuntimeError(
                f"FlashAttention only support fp16 and bf16 data type: {name} is {x.dtype} on "
                f"{x.device}"
            )
        if x.dim() != 3 or x.stride(-1) != 1:
            raise RuntimeError(f"{name} must have 3 and a contiguous last dimension: {x.stride()}")
    if query.shape[1] % key.shape[1] or key.shape != value.shape or query.shape[2] > 256:
        raise RuntimeError(f"heads: {list(query.shape)}, {list(key.shape)}, {list(value.shape)}")
    for cu_seqlens, most, rows in zip(ends, longest, (query, key), strict=True):
        if not cu_seqlens.is_cuda or cu_seqlens.dtype != torch.int32:
            raise RuntimeError(f"cu_seqlens: {cu_seqlens.dtype} on {cu_seqlens.device}")
        if not cu_seqlens.is_contiguous():
            raise RuntimeError("cu_seqlens must be contiguous")
        if not isinstance(most, int):
            raise TypeError(f"the longest length is {type(most).__name__}, expected int")
        plain = on_cpu(cu_seqlens)
        # A kernel would read past the end, or leave rows out, without a word.
        if plain[0] != 0 or plain[-1] != len(rows) or plain.diff().max() > most:
            raise RuntimeError(f"cu_seqlens {plain.tolist()}, longest {most}, {len(rows)} rows")


def _of_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    _check(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k))
    if query.shape[2] % 8:
        raise RuntimeError(f"head_size must be a multiple of 8, not {query.shape[2]}")
    return _attend(query, key, value, cu_seq_q, cu_seq_k, scale, window, None)


# ---------------------------------------------------------------------------------------------
# What they compute


class _Attend(torch.autograd.Function):
    """The kernels of either package: one operator to autograd, autocast and checkpointing."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, scale, window, ctx.ordered = inputs
        ctx.save_for_backward(*tensors)
        ctx.options = (scale, window)
        seen.forward += 1
        seen.windows += window[0] >= 0
        out = attention(*map(on_cpu, tensors), *ctx.options)
        return on_gpu(out.to(tensors[0].dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *inputs, ends, key_ends = map(on_cpu, ctx.saved_tensors)
        seen.backward += 1
        seen.ordered += _is_ordered() if ctx.ordered is None else ctx.ordered
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = attention(*leaves, ends, key_ends, *ctx.options)
        found = torch.autograd.grad(out, leaves, on_cpu(grads[0]).float())
        return (*map(on_gpu, found), *(None,) * 5)


def _attend(*inputs: Any) -> Tensor:
    out: Tensor = _Attend.apply(*inputs)  # type: ignore[no-untyped-call]
    return out


def _is_ordered() -> bool:
    """Whether PyTorch's own backward has a fixed order: in deterministic mode that does not only
    warn (``_flash_attention_backward`` in ``attention_backward.cu``)."""
    if torch.are_deterministic_algorithms_enabled():
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            return True
        warnings.warn("Flash Attention defaults to a non-deterministic algorithm.", stacklevel=2)
    return False


def attention(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    """[T, H, D], float32: softmax over the keys of the same sequence within the window, where a
    sequence's last query stands at its last key."""
    query, key, value = (x.float() for x in (query_THD, key_TKD, value_TKD))
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    rows, keys = (torch.arange(len(x), device="cpu") for x in (query, key))
    sequence, of_key = (
        torch.bucketize(x, e[1:], right=True) for x, e in ((rows, ends), (keys, key_ends))
    )
    places = rows - ends[1:][sequence], keys - key_ends[1:][of_key]  # from the end
    before = places[0][:, None] - places[1][None, :]  # how far a key lies before the query
    left, right = (math.inf if w < 0 else w for w in window)
    visible = (sequence[:, None] == of_key[None, :]) & (before <= left) & (-before <= right)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)
