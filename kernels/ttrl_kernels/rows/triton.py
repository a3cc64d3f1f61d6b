"""The row operations as two Triton kernels, for logits on a GPU.

One program owns one row: no atomics, the same bits on every run, and a row's result does not
depend on the rows beside it. Maths in float32 whatever the logits are stored in.

What limits these kernels is memory, so each reads a logit once. The gradient goes where the logits
were, already in the dtype that the matmuls read: with float32 logits and bfloat16 matmuls, 10
bytes per logit in all (4 for the statistics, 4 and 2 for the gradient), where a cast of its own
would make it 18, and nothing is allocated that grows with the vocabulary.

Only operations that Triton's interpreter knows are used, so that all of it is tested without a GPU
(``TRITON_INTERPRET=1``, set before this module is imported).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttrl_kernels.rows.interface import RowGrads, RowStats

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
"""Where a running maximum starts: below every logit, and unlike -inf it can be subtracted."""

BLOCK = 4096
"""Logits that a program reads at a time: 16 kB of float32 on their way from memory. An H200 needs
about 25 kB under way on each multiprocessor (4.8 TB/s · 0.7 µs / 132), a B200 about 40. With at
most 80 registers per thread (128 with a softcap), which `tests/kernels/test_triton_build.py` holds,
three programs (two) or more fit on one. So one block serves every vocabulary and chip, and nothing
is tuned at run time, which could change the order of a sum and so the bits from one run to the
next. Columns past the end of the row are masked: the last block of next to every real vocabulary
has some, and memory, not the mask, is what a block waits for."""

WARPS = 8
"""256 threads with 16 logits each: four 16-byte loads of float32 under way per thread."""

# Fused multiply-adds round once; stated because Triton's default for them changes with 3.10.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": True}


def stats_config(dtype: torch.dtype) -> dict[str, int]:
    """Return the block of `row_stats_kernel` for a dtype of logits: DEPTH lines of LANES columns.

    With 16 bytes per thread and line, a column never leaves its thread: until the end of the row,
    maxima and sums need no exchange between threads.
    """
    lanes = WARPS * 32 * 16 // dtype.itemsize
    return {"LANES": lanes, "DEPTH": BLOCK // lanes}


def row_stats(
    logits_CV: Tensor, targets_C: Tensor, temperature_C: Tensor, softcap: float | None
) -> RowStats:
    """Compute each row's statistics, float32. Raises ValueError for logits it cannot read."""
    _check(logits_CV)
    rows, vocabulary = logits_CV.shape
    targets_C, temperature_C = targets_C.contiguous(), temperature_C.contiguous()
    empty_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    stats = RowStats(empty_C, *(torch.empty_like(empty_C) for _ in range(3)))
    if rows:
        with torch.cuda.device_of(logits_CV):
            row_stats_kernel[(rows,)](
                logits_CV,
                targets_C,
                temperature_C,
                *stats,
                softcap,
                vocabulary,
                logits_CV.stride(0),
                **stats_config(logits_CV.dtype),
                **OPTIONS,
            )
    return stats


def row_grad_(
    logits_CV: Tensor,
    rows_K: Tensor,
    targets_K: Tensor,
    temperature_K: Tensor,
    softcap: float | None,
    stats_K: RowStats,
    grads_K: RowGrads,
    dtype: torch.dtype,
) -> Tensor:
    """Write dL/du of some rows over the first K rows of the logits.

    In a narrower dtype each row fills the front part of its place, so the result's row stride is
    then more than the vocabulary. Raises ValueError for logits the kernels cannot read.
    """
    _check(logits_CV)
    if dtype not in (logits_CV.dtype, torch.bfloat16):
        raise ValueError(
            f"dtype is {dtype} for logits in {logits_CV.dtype}, expected the same or "
            "torch.bfloat16: the gradient is written over the logits"
        )
    rows, vocabulary = len(rows_K), logits_CV.shape[1]
    out_KV = logits_CV.view(dtype)[:rows, :vocabulary]
    vectors = (
        None if x is None else x.contiguous()
        for x in (
            rows_K,
            targets_K,
            temperature_K,
            stats_K.row_max,
            stats_K.log_sum,
            stats_K.entropy,
            grads_K.logp,
            grads_K.entropy,
        )
    )
    if rows:
        with torch.cuda.device_of(logits_CV):
            row_grad_kernel[(rows,)](
                logits_CV,
                out_KV,
                *vectors,
                softcap,
                vocabulary,
                logits_CV.stride(0),
                out_KV.stride(0),
                BLOCK,
                **OPTIONS,
            )
    return out_KV


def _check(logits_CV: Tensor) -> None:
    if not (logits_CV.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError(
            f"logits are on {logits_CV.device}, expected a CUDA device: move the tensors there, or "
            "use backend='auto'"
        )
    if logits_CV.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"logits are {logits_CV.dtype}, expected torch.float32 or torch.bfloat16: "
            "backend='torch' also does float64"
        )
    if logits_CV.stride(1) != 1:
        raise ValueError(
            f"logits have strides {logits_CV.stride()}, expected each row to be contiguous: use "
            ".contiguous()"
        )


# Suffixes in the kernels: ``_B`` a block of columns, ``_L`` lanes, one column of the block each.


@triton.jit
def row_stats_kernel(
    logits_ptr,
    targets_ptr,
    temperature_ptr,
    row_max_ptr,
    log_sum_ptr,
    logp_ptr,
    entropy_ptr,
    softcap,  # None: no cap
    vocabulary,
    row_stride,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute the statistics of one row, by one read of its logits.

    Every lane keeps its own m = max z, s = Σ e^(z−m) and w = Σ e^(z−m)·(z−m). When m grows by δ,
    all exponents shrink by δ: s becomes s·e^−δ and w becomes (w − s·δ)·e^−δ. Then lse = m + log s,
    H = log s − w/s: both parts non-negative, so nothing cancels.
    """
    row = tl.program_id(0).to(tl.int64)  # chunks have more than 2^31 logits
    logits_ptr += row * row_stride
    inverse_temperature = 1 / tl.load(temperature_ptr + row)
    columns_B = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    max_L = tl.full([LANES], LOWEST, tl.float32)
    sum_L = tl.zeros([LANES], tl.float32)
    moment_L = tl.zeros([LANES], tl.float32)
    for start in range(0, vocabulary, DEPTH * LANES):
        inside_B = start + columns_B < vocabulary
        z_B = _scaled(tl.load(logits_ptr + start + columns_B, inside_B), softcap)
        # Masked after the softcap, which would lift −inf to −s.
        z_B = tl.where(inside_B, z_B * inverse_temperature, float("-inf"))
        new_max_L = tl.maximum(max_L, tl.max(z_B, 0))
        decay_L, growth_L = _exp(max_L - new_max_L)
        exp_B, exponent_B = _exp(z_B - new_max_L[None, :])
        moment_L = (moment_L + sum_L * growth_L) * decay_L + tl.sum(exp_B * exponent_B, 0)
        sum_L = sum_L * decay_L + tl.sum(exp_B, 0)
        max_L = new_max_L

    row_max = tl.max(max_L, 0)
    decay_L, growth_L = _exp(max_L - row_max)
    row_sum = tl.sum(sum_L * decay_L, 0)
    moment = tl.sum((moment_L + sum_L * growth_L) * decay_L, 0)
    row_sum = tl.where(row_sum > 0, row_sum, float("nan"))  # 0: nothing but −inf
    log_sum = tl.log(row_sum)
    target = tl.load(targets_ptr + row)
    target_z = _scaled(tl.load(logits_ptr + target), softcap) * inverse_temperature
    tl.store(row_max_ptr + row, row_max)
    tl.store(log_sum_ptr + row, log_sum)
    tl.store(logp_ptr + row, target_z - row_max - log_sum)
    tl.store(entropy_ptr + row, log_sum - moment / row_sum)


@triton.jit
def row_grad_kernel(
    logits_ptr,
    out_ptr,  # the same memory
    rows_ptr,
    targets_ptr,
    temperature_ptr,
    row_max_ptr,
    log_sum_ptr,
    entropy_ptr,
    grad_logp_ptr,
    grad_entropy_ptr,  # None: no entropy in the loss
    softcap,  # None: no cap
    vocabulary,
    row_stride,
    out_stride,
    BLOCK: tl.constexpr,
):
    """Write one row's dL/du over the logits, by the equations in `reference.row_grad_`.

    In place, block after block. A narrower result lags behind what is read: block b overwrites
    what blocks b/2 and before were read from, in this program's own row. Only other warps of the
    program can still be about to read it, in the same block: hence the barrier.
    """
    k = tl.program_id(0).to(tl.int64)
    logits_ptr += tl.load(rows_ptr + k) * row_stride
    out_ptr += k * out_stride
    target = tl.load(targets_ptr + k)
    inverse_temperature = 1 / tl.load(temperature_ptr + k)
    row_max = tl.load(row_max_ptr + k)
    log_sum = tl.load(log_sum_ptr + k)
    grad_logp = tl.load(grad_logp_ptr + k)
    if grad_entropy_ptr is not None:
        entropy = tl.load(entropy_ptr + k)
        grad_entropy = tl.load(grad_entropy_ptr + k)
    for start in range(0, vocabulary, BLOCK):
        columns_B = start + tl.arange(0, BLOCK)
        inside_B = columns_B < vocabulary
        logits_B = tl.load(logits_ptr + columns_B, inside_B)
        if logits_ptr.dtype != out_ptr.dtype:
            tl.debug_barrier()
        capped_B = _scaled(logits_B, softcap)
        p_B, log_p_B = _exp(capped_B * inverse_temperature - row_max - log_sum)
        grad_B = -grad_logp * p_B
        if grad_entropy_ptr is not None:
            grad_B -= grad_entropy * p_B * (log_p_B + entropy)
        # p − 1 of the target is formed here, in float32, and rounded once.
        grad_B = tl.where(columns_B == target, grad_B + grad_logp, grad_B) * inverse_temperature
        if softcap is not None:
            tanh_B = capped_B / softcap
            grad_B *= 1 - tanh_B * tanh_B
        tl.store(out_ptr + columns_B, grad_B.to(out_ptr.dtype.element_ty), inside_B)


@triton.jit
def _exp(x):
    """Compute e^x, and x itself, but 0 where e^x is 0.

    A product of e^x and x would be 0·(−inf) there.
    """
    exp = tl.exp(x)
    return exp, tl.where(exp == 0, 0.0, x)


@triton.jit
def _scaled(logits, softcap):
    """Compute softcap(u) = s·tanh(u/s), or u itself without a softcap."""
    u = logits.to(tl.float32)
    if softcap is not None:
        u = softcap * _tanh(u / softcap)
    return u


@triton.jit
def _tanh(x):
    """Compute tanh x as (1 − e^−2|x|) / (1 + e^−2|x|) with the sign of x.

    Near 0, where that cancels, four terms of Lambert's continued fraction
    x/(1 + x²/(3 + x²/(5 + x²/7))), off by less than 4e-8 of the value up to ½. CUDA's own tanh is
    out of the interpreter's reach.
    """
    square = x * x
    exp = tl.exp(-2 * tl.abs(x))
    small = tl.abs(x) < 0.5
    top = tl.where(small, x * (105 + 10 * square), tl.where(x < 0, exp - 1, 1 - exp))
    return top / tl.where(small, 105 + (45 + square) * square, 1 + exp)
