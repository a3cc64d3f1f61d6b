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
from ttrl_kernels.chunks import Gradients, product_dtype, weight_gradient_dtype
from ttrl_kernels.inputs import IGNORED_TARGET, live_head
from ttrl_kernels.loss_math import accumulation_dtype, scatter_rows
from ttrl_kernels.policy_options import PolicyOptions
from ttrl_kernels.rows import RowGrads, RowStats, resolve_backend
from ttrl_kernels.signature import HeadInputs, Needs, OutputGradients, Signature
from ttrl_kernels.token_data import TokenData, check_tokens

LOGPROB = Signature(HeadInputs)
LOGPROB_GRADIENTS = Signature(HeadInputs, RowStats, OutputGradients, Needs)
POLICY_LOSS = Signature(HeadInputs, TokenData, PolicyOptions, Needs)


def _wanted(gradients: Gradients | None, hidden_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dX, dW and db; of size 0 where not wanted."""
    nothing = (None, None, None)
    found = (
        nothing
        if gradients is None
        else (gradients.hidden_TH, gradients.weight_VH, gradients.bias_V)
    )
    hidden, weight, bias = (hidden_TH.new_empty(0) if g is None else g for g in found)
    return hidden, weight, bias


def _fake_wanted(
    head: HeadInputs, needs: Needs, dtypes: tuple[torch.dtype, ...]
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(x, dtype=dtype) if x is not None and need else head.hidden_TH.new_empty(0)
        for x, need, dtype in zip(head[:3], needs, dtypes, strict=True)
    )


def _fake_vectors(hidden_TH: Tensor, count: int) -> list[Tensor]:
    dtype = accumulation_dtype(hidden_TH.dtype)
    return [hidden_TH.new_empty(hidden_TH.shape[0], dtype=dtype) for _ in range(count)]


def _for_inputs(
    gradients: tuple[Tensor | None, ...], signature: Signature
) -> tuple[Tensor | None, ...]:
    """Return the gradients of hidden states, weight and bias, and None for the other arguments."""
    return *gradients, *[None] * (len(signature) - len(gradients))


# --- log-probs and entropies


@torch.library.custom_op("ttrl_kernels::logprob", mutates_args=(), schema=LOGPROB.schema(outputs=4))
def logprob(*inputs: Any) -> tuple[Tensor, ...]:
    """Compute the `RowStats` of each token, 0 on ignored ones."""
    (head,) = LOGPROB.split(inputs)
    rows_L = (head.targets_T != IGNORED_TARGET).nonzero().squeeze(1)
    backend = resolve_backend(head.backend, head.hidden_TH)
    stats = chunks.logprob(live_head(head, rows_L), backend)
    return tuple(scatter_rows(x, rows_L, head.hidden_TH.shape[0]) for x in stats)


@logprob.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    (head,) = LOGPROB.split(inputs)
    return tuple(_fake_vectors(head.hidden_TH, 4))


@torch.library.custom_op(
    "ttrl_kernels::logprob_gradients",
    mutates_args=(),
    schema=LOGPROB_GRADIENTS.schema(outputs=3),
)
def logprob_gradients(*inputs: Any) -> tuple[Tensor, ...]:
    """Compute dX, dW and db in the inputs' dtype; logits are recomputed chunk by chunk."""
    head, stats, (grad_logp_T, grad_entropy_T), needs = LOGPROB_GRADIENTS.split(inputs)
    rows_L = (head.targets_T != IGNORED_TARGET).nonzero().squeeze(1)
    stats_L = stats.at(rows_L)
    grads_L = RowGrads(
        torch.zeros_like(stats_L.logp) if grad_logp_T is None else grad_logp_T[rows_L],
        None if grad_entropy_T is None else grad_entropy_T[rows_L],
    )
    backend = resolve_backend(head.backend, head.hidden_TH)
    gradients = chunks.logprob_gradients(live_head(head, rows_L), backend, stats_L, grads_L, needs)
    return tuple(g.to(head.hidden_TH.dtype) for g in _wanted(gradients, head.hidden_TH))


@logprob_gradients.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    head, _, _, needs = LOGPROB_GRADIENTS.split(inputs)
    return _fake_wanted(head, needs, (head.hidden_TH.dtype,) * 3)


def _save_for_logprob(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (head,) = LOGPROB.split(inputs)
    ctx.save_for_backward(
        head.hidden_TH,
        head.weight_VH,
        head.bias_V,
        head.targets_T,
        head.temperature_T,
        head.support_TM,
        *output,
    )
    ctx.constants = head.temperature, head.softcap, head.backend
    ctx.mark_non_differentiable(*output[:2])
    ctx.set_materialize_grads(False)  # no gradient for the entropy: its terms are left out


@once_differentiable
def _logprob_backward(
    ctx: Any, _: None, __: None, grad_logp_T: Tensor | None, grad_entropy_T: Tensor | None
) -> tuple[Tensor | None, ...]:
    hidden_TH, weight_VH, bias_V, targets_T, temperature_T, support_TM, *stats = ctx.saved_tensors
    temperature, softcap, backend = ctx.constants
    head = HeadInputs(
        hidden_TH,
        weight_VH,
        bias_V,
        targets_T,
        temperature,
        temperature_T,
        softcap,
        backend,
        support_TM,
    )
    needs = ctx.needs_input_grad[:3]
    gradients = logprob_gradients(*head, *stats, grad_logp_T, grad_entropy_T, *needs)
    wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return _for_inputs(tuple(wanted), LOGPROB)


logprob.register_autograd(_logprob_backward, setup_context=_save_for_logprob)


# --- policy loss


@torch.library.custom_op(
    "ttrl_kernels::policy_loss", mutates_args=(), schema=POLICY_LOSS.schema(outputs=10)
)
def policy_loss(*inputs: Any) -> tuple[Tensor, ...]:
    """Compute the fields of `PolicyLoss` (kl_T of size 0 without reference), then dX, dW and db."""
    head, tokens, options, needs = POLICY_LOSS.split(inputs)
    rows_L = tokens.weights.nonzero().squeeze(1)
    check_tokens(tokens, options)
    tokens_L = tokens.at(rows_L).to(accumulation_dtype(head.hidden_TH.dtype))
    backend = resolve_backend(head.backend, head.hidden_TH)
    stats, losses, gradients = chunks.policy_loss(
        live_head(head, rows_L), backend, tokens_L, options, needs
    )
    total = head.hidden_TH.shape[0]
    return (
        losses.loss.sum(),
        scatter_rows(stats.logp, rows_L, total),
        scatter_rows(stats.entropy, rows_L, total),
        scatter_rows(losses.clipped, rows_L, total),
        head.hidden_TH.new_empty(0)
        if losses.kl is None
        else scatter_rows(losses.kl, rows_L, total),
        torch.tensor(len(rows_L)),
        torch.tensor(0 if gradients is None else gradients.rows),
        *_wanted(gradients, head.hidden_TH),
    )


@policy_loss.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    head, tokens, _, needs = POLICY_LOSS.split(inputs)
    logp_T, entropy_T, kl_T = _fake_vectors(head.hidden_TH, 3)
    dtypes = (
        product_dtype(head.hidden_TH),
        weight_gradient_dtype(head.hidden_TH, head.weight_VH),
        logp_T.dtype,
    )
    return (
        logp_T.new_empty(()),
        logp_T,
        entropy_T,
        torch.empty_like(logp_T, dtype=torch.bool),
        head.hidden_TH.new_empty(0) if tokens.ref_logp is None else kl_T,
        torch.empty((), dtype=torch.int64),
        torch.empty((), dtype=torch.int64),
        *_fake_wanted(head, needs, dtypes),
    )


@torch.library.custom_op("ttrl_kernels::scaled", mutates_args=())
def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute x · factor, rounded in the same step: no second float32 matrix of the size of dW."""
    return torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))


@scaled.register_fake
def _(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _save_for_policy_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[-3:])
    head, _, _, ctx.needs = POLICY_LOSS.split(inputs)
    ctx.dtype = head.hidden_TH.dtype
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
    return _for_inputs(tuple(scale(g) if need else None for g, need in gradients), POLICY_LOSS)


policy_loss.register_autograd(_policy_loss_backward, setup_context=_save_for_policy_loss)
