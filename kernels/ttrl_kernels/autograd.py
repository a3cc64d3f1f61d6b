"""How the host loop's gradients enter PyTorch's graph.

Both functions round each accumulated gradient to its input's dtype once, after the incoming
gradient was multiplied in, and change no saved tensor, so that ``retain_graph`` works.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttrl_kernels import chunks
from ttrl_kernels.chunks import Head, Needs
from ttrl_kernels.loss_math import scatter_rows
from ttrl_kernels.rows import RowBackend, RowGrads, RowStats


class AttachGradients(torch.autograd.Function):
    """A scalar loss whose gradients are known already: backward only scales them.

    They wait in float32, at 4 bytes per entry of the weight: rounded first and scaled second, a
    factor like 1/3 would cost a second rounding.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        *gradients: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtype = hidden_TH.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else (g * grad_loss).to(ctx.dtype) for g in ctx.saved_tensors]
        return (None, *scaled, None, None, None)


class LinearLogprob(torch.autograd.Function):
    """Log-prob and entropy of each token; backward recomputes the logits chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        head: Head,
        backend: RowBackend,
    ) -> tuple[Tensor, Tensor]:
        stats = chunks.logprob(head, backend)
        ctx.save_for_backward(
            hidden_TH, weight_VH, bias_V, head.rows_L, head.targets_L, head.temperature_L, *stats
        )
        ctx.softcap, ctx.backend = head.softcap, backend
        ctx.set_materialize_grads(False)  # no gradient for the entropy: its terms are left out
        total = hidden_TH.shape[0]
        return (
            scatter_rows(stats.logp, head.rows_L, total),
            scatter_rows(stats.entropy, head.rows_L, total),
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp_T: Tensor | None, grad_entropy_T: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, bias_V, rows_L, targets_L, temperature_L, *stats = ctx.saved_tensors
        head = Head(hidden_TH, weight_VH, bias_V, rows_L, targets_L, temperature_L, ctx.softcap)
        stats_L = RowStats(*stats)
        grads_L = RowGrads(
            torch.zeros_like(stats_L.logp) if grad_logp_T is None else grad_logp_T[rows_L],
            None if grad_entropy_T is None else grad_entropy_T[rows_L],
        )
        needs = Needs(*ctx.needs_input_grad[:3])
        out = chunks.logprob_gradients(head, ctx.backend, stats_L, grads_L, needs)
        rounded = [
            None if g is None else g.to(hidden_TH.dtype)
            for g in (out.hidden_TH, out.weight_VH, out.bias_V)
        ]
        return (*rounded, None, None)
