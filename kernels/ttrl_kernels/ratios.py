"""Importance ratios between the policy and the one that sampled, of tokens and of sequences.

Shapes by suffix: ``_L`` live tokens, ``_S`` sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttrl_kernels.token_data import TokenData

LOG_RATIO_LIMIT = 20.0
"""exp(20) = 4.9e8 still squares within fp32; past the limit the gradient is zero, not wrong."""


def clamp_log_ratio(d: Tensor) -> Tensor:
    """Clamp d to ±20: gradient 1 inside the limits, 0 outside, and NaN for NaN.

    `Tensor.clamp` gives NaN a gradient of 0: the loss would be NaN while the optimizer, which only
    sees gradients, stepped on as if nothing had happened.
    """
    clamped = d.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.where(d.abs() > LOG_RATIO_LIMIT, clamped, d)


class _SequenceMean(torch.autograd.Function):
    """Replace each value by the mean over its sequence.

    As a matrix this is a symmetric projection, so it is its own backward. Sorting and segment
    sums give the same bits on every run, which scattered atomic adds would not.
    """

    @staticmethod
    def forward(ctx: Any, values_L: Tensor, ids_L: Tensor) -> Tensor:
        ctx.save_for_backward(ids_L)
        order_L = ids_L.argsort(stable=True)
        _, lengths_S = torch.unique_consecutive(ids_L[order_L], return_counts=True)
        mean_S = torch.segment_reduce(values_L[order_L], "mean", lengths=lengths_S, unsafe=True)
        out_L = torch.empty_like(values_L)
        out_L[order_L] = mean_S.repeat_interleave(lengths_S)
        return out_L

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (ids_L,) = ctx.saved_tensors
        return sequence_mean(grads[0], ids_L), None


def sequence_mean(values_L: Tensor, ids_L: Tensor | None) -> Tensor:
    """Return at each token the mean over the tokens that share its id; ids in any order."""
    assert ids_L is not None  # `check_tokens` has made sure
    mean_L: Tensor = _SequenceMean.apply(values_L, ids_L)  # type: ignore[no-untyped-call]
    return mean_L


def old_logprobs(logp_L: Tensor, tokens: TokenData) -> Tensor:
    """Return the log-probs that ratios are measured against: on-policy, stop_gradient(logp)."""
    return logp_L.detach() if tokens.old_logp is None else tokens.old_logp


def policy_ratio(logp_L: Tensor, tokens: TokenData, level: str) -> Tensor:
    """Compute the importance ratio of each live token.

    token:     r_t = exp(logp_t − old_t)
    sequence:  r_t = exp(mean over the live tokens of t's sequence of logp − old)   (GSPO)
    On-policy the ratio is 1 and still carries the gradient.
    """
    log_ratio_L = logp_L - old_logprobs(logp_L, tokens)
    if level == "sequence":
        log_ratio_L = sequence_mean(log_ratio_L, tokens.sequence_ids)
    return clamp_log_ratio(log_ratio_L).exp()
