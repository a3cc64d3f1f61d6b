"""The host loop as PyTorch operators, with what autograd and torch.compile need to know.

To the compiler each is opaque: shapes come from its fake, and what depends on the data (which rows
are live, whether a target is in range, every number of the loss) happens inside, at run time. So
no constant is baked into generated code, and outputs are [T] vectors, however many rows are live.

Operators take and return tensors, numbers and names only, and autograd cannot tell them which
gradients are wanted: ``need_*`` says so, and what is not wanted comes back with size 0. No output
shares memory with an input, and no saved tensor is changed, so ``retain_graph`` works.

On a GPU gradients wait in float32 until backward and are rounded to the inputs' dtype once, after
the incoming gradient was multiplied in: rounded first, a factor like 1/3 costs a second rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttrl_kernels import chunks
from ttrl_kernels.chunks import Gradients, Needs, product_dtype, weight_gradient_dtype
from ttrl_kernels.inputs import IGNORED_TARGET, live_head
from ttrl_kernels.loss_math import (
    PolicyOptions,
    TokenData,
    accumulation_dtype,
    check_tokens,
    scatter_rows,
)
from ttrl_kernels.rows import RowGrads, RowStats, resolve_backend


def _wanted(gradients: Gradients | None, hidden_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dX, dW and db; of size 0 where not wanted."""
    nothing = (None, None, None)
    found = (
        nothing
        if gradients is None
        else (gradients.hidden_TH, gradients.weight_VH, gradients.bias_V)
    )
    hidden, weight, bias = (hidden_TH.new_empty(0) if g is None else g for g in found)
    return hidden, weight, bias


def _fake_wanted(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    needs: tuple[bool, ...],
    dtypes: tuple[torch.dtype, ...],
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(x, dtype=dtype) if x is not None and need else inputs[0].new_empty(0)
        for x, need, dtype in zip(inputs, needs, dtypes, strict=True)
    )


def _fake_vectors(hidden_TH: Tensor, count: int) -> list[Tensor]:
    dtype = accumulation_dtype(hidden_TH.dtype)
    return [hidden_TH.new_empty(hidden_TH.shape[0], dtype=dtype) for _ in range(count)]


# --- log-probs and entropies


@torch.library.custom_op("ttrl_kernels::logprob", mutates_args=())
def logprob(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature: float,
    temperature_T: Tensor | None,
    softcap: float | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `RowStats` of each token, 0 on ignored ones."""
    rows_L = (targets_T != IGNORED_TARGET).nonzero().squeeze(1)
    head = live_head(
        hidden_TH, weight_VH, bias_V, targets_T, temperature, temperature_T, softcap, rows_L
    )
    stats = chunks.logprob(head, resolve_backend(backend, hidden_TH))
    total = hidden_TH.shape[0]
    row_max, log_sum, logp, entropy = (scatter_rows(x, rows_L, total) for x in stats)
    return row_max, log_sum, logp, entropy


@logprob.register_fake
def _(hidden_TH: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(_fake_vectors(hidden_TH, 4))


@torch.library.custom_op("ttrl_kernels::logprob_gradients", mutates_args=())
def logprob_gradients(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature: float,
    temperature_T: Tensor | None,
    softcap: float | None,
    backend: str,
    row_max_T: Tensor,
    log_sum_T: Tensor,
    logp_T: Tensor,
    entropy_T: Tensor,
    grad_logp_T: Tensor | None,
    grad_entropy_T: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dX, dW and db in the dtype of the inputs; the logits are recomputed chunk by chunk."""
    rows_L = (targets_T != IGNORED_TARGET).nonzero().squeeze(1)
    head = live_head(
        hidden_TH, weight_VH, bias_V, targets_T, temperature, temperature_T, softcap, rows_L
    )
    stats_L = RowStats(row_max_T, log_sum_T, logp_T, entropy_T).at(rows_L)
    grads_L = RowGrads(
        torch.zeros_like(stats_L.logp) if grad_logp_T is None else grad_logp_T[rows_L],
        None if grad_entropy_T is None else grad_entropy_T[rows_L],
    )
    needs = Needs(need_hidden, need_weight, need_bias)
    rows = resolve_backend(backend, hidden_TH)
    gradients = chunks.logprob_gradients(head, rows, stats_L, grads_L, needs)
    hidden, weight, bias = _wanted(gradients, hidden_TH)
    return hidden.to(hidden_TH.dtype), weight.to(hidden_TH.dtype), bias.to(hidden_TH.dtype)


@logprob_gradients.register_fake
def _(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return _fake_wanted((hidden_TH, weight_VH, bias_V), rest[-3:], (hidden_TH.dtype,) * 3)


def _save_for_logprob(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden_TH, weight_VH, bias_V, targets_T, temperature, temperature_T, *ctx.names = inputs
    ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T, temperature_T, *output)
    ctx.temperature = temperature
    ctx.mark_non_differentiable(*output[:2])
    ctx.set_materialize_grads(False)  # no gradient for the entropy: its terms are left out


@once_differentiable
def _logprob_backward(
    ctx: Any, _: None, __: None, grad_logp_T: Tensor | None, grad_entropy_T: Tensor | None
) -> tuple[Tensor | None, ...]:
    hidden_TH, weight_VH, bias_V, targets_T, temperature_T, *stats = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    gradients = logprob_gradients(
        hidden_TH,
        weight_VH,
        bias_V,
        targets_T,
        ctx.temperature,
        temperature_T,
        *ctx.names,
        *stats,
        grad_logp_T,
        grad_entropy_T,
        *needs,
    )
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *[None] * 5


logprob.register_autograd(_logprob_backward, setup_context=_save_for_logprob)


# --- policy loss


@torch.library.custom_op("ttrl_kernels::policy_loss", mutates_args=())
def policy_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature: float,
    temperature_T: Tensor | None,
    softcap: float | None,
    backend: str,
    advantages_T: Tensor,
    token_weights_T: Tensor,
    old_logp_T: Tensor | None,
    ref_logp_T: Tensor | None,
    sequence_ids_T: Tensor | None,
    policy: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    ratio_level: str,
    kl: str,
    kl_coef: float,
    entropy_coef: float,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `PolicyLoss` (kl_T of size 0 without a reference), then dX, dW and db."""
    options = PolicyOptions(
        policy, clip_low, clip_high, dual_clip, ratio_level, kl, kl_coef, entropy_coef
    )
    rows_L = token_weights_T.nonzero().squeeze(1)
    tokens = TokenData(advantages_T, token_weights_T, old_logp_T, ref_logp_T, sequence_ids_T)
    check_tokens(tokens, options)
    tokens_L = tokens.at(rows_L).to(accumulation_dtype(hidden_TH.dtype))
    head = live_head(
        hidden_TH, weight_VH, bias_V, targets_T, temperature, temperature_T, softcap, rows_L
    )
    needs = Needs(need_hidden, need_weight, need_bias)
    stats, losses, gradients = chunks.policy_loss(
        head, resolve_backend(backend, hidden_TH), tokens_L, options, needs
    )
    total = hidden_TH.shape[0]
    return (
        losses.loss.sum(),
        scatter_rows(stats.logp, rows_L, total),
        scatter_rows(stats.entropy, rows_L, total),
        scatter_rows(losses.clipped, rows_L, total),
        hidden_TH.new_empty(0) if losses.kl is None else scatter_rows(losses.kl, rows_L, total),
        torch.tensor(len(rows_L)),
        torch.tensor(0 if gradients is None else gradients.rows),
        *_wanted(gradients, hidden_TH),
    )


@policy_loss.register_fake
def _(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    logp_T, entropy_T, kl_T = _fake_vectors(hidden_TH, 3)
    ref_logp_T = rest[8]
    dtypes = (
        product_dtype(hidden_TH),
        weight_gradient_dtype(hidden_TH, weight_VH),
        logp_T.dtype,
    )
    return (
        logp_T.new_empty(()),
        logp_T,
        entropy_T,
        torch.empty_like(logp_T, dtype=torch.bool),
        hidden_TH.new_empty(0) if ref_logp_T is None else kl_T,
        torch.empty((), dtype=torch.int64),
        torch.empty((), dtype=torch.int64),
        *_fake_wanted((hidden_TH, weight_VH, bias_V), rest[-3:], dtypes),
    )


@torch.library.custom_op("ttrl_kernels::scaled", mutates_args=())
def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x · factor, rounded in the same step: no second float32 matrix of the size of dW."""
    return torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))


@scaled.register_fake
def _(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _save_for_policy_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[-3:])
    ctx.needs, ctx.dtype = inputs[-3:], inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # of dW, a second matrix of that size


@once_differentiable
def _policy_loss_backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    # A plain `loss.backward()` on the CPU, where looking at the factor costs nothing, makes no
    # second dW. Autograd notices if what is returned is changed and then needed once more.
    is_one = type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and bool(grad_loss == 1)

    def scale(g: Tensor) -> Tensor:
        return g if is_one and g.dtype == ctx.dtype else scaled(g, grad_loss, ctx.dtype)

    gradients = zip(ctx.saved_tensors, ctx.needs, strict=True)
    return *(scale(g) if need else None for g, need in gradients), *[None] * 21


policy_loss.register_autograd(_policy_loss_backward, setup_context=_save_for_policy_loss)
