"""Log-probs and policy losses of a linear language-model head that never hold all its logits.

    z = softcap(W x_t + b) / τ      logp_t = z_y − lse(z)      H_t = −Σ_v p_v log p_v

Shapes by suffix: ``_T`` packed tokens (padding and prompts may be among them), ``_H`` hidden
size, ``_V`` vocabulary. Log-probs and entropies are in nats. All inputs live on one device, and
``hidden``, ``weight`` and ``bias`` share a dtype: float32, bfloat16 or float64. Results are
float32, or float64 for float64 inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttrl_kernels import chunks
from ttrl_kernels.autograd import AttachGradients, LinearLogprob
from ttrl_kernels.chunks import Needs
from ttrl_kernels.inputs import check_matrices, check_vector, live_tokens, make_head
from ttrl_kernels.loss_math import PolicyLoss, PolicyOptions, TokenData, check_tokens, scatter_rows
from ttrl_kernels.rows import backends, resolve_backend

__all__ = ["LogProbs", "PolicyLoss", "backends", "linear_logprob", "linear_policy_loss"]

IGNORED_TARGET = -100
"""The target that `linear_logprob` skips."""


class LogProbs(NamedTuple):
    """Per token, differentiable in hidden states, weight and bias; 0 on ignored tokens."""

    logp_T: Tensor
    """Log-prob of each target, in nats."""
    entropy_T: Tensor
    """Entropy of each next-token distribution, in nats."""


def linear_logprob(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> LogProbs:
    """Log-prob of each target and entropy of each row, one matmul forward and three backward.

    Args:
        hidden_TH: hidden states, [tokens, hidden size].
        weight_VH: the head's weight, [vocabulary, hidden size].
        targets_T: int64 token ids; −100 marks a token to skip, which costs nothing.
        bias: [vocabulary], added before the softcap.
        temperature: τ > 0, one number or a [T] vector.
        softcap: s > 0 in softcap(u) = s·tanh(u/s), applied before the temperature.
        backend: one of `backends()`, or "auto".

    Raises:
        ValueError: a shape, dtype, device, number, target or backend that does not fit.
    """
    rows_backend = resolve_backend(backend)
    check_matrices(hidden_TH, weight_VH, targets_T)
    rows_L = (targets_T != IGNORED_TARGET).nonzero().squeeze(1)
    head = make_head(
        hidden_TH,
        weight_VH,
        targets_T,
        rows_L,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
    )
    # The head holds these three as well; autograd only sees what is passed by itself.
    return LogProbs(*LinearLogprob.apply(hidden_TH, weight_VH, bias, head, rows_backend))  # type: ignore[no-untyped-call]


def linear_policy_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    advantages_T: Tensor,
    token_weights_T: Tensor,
    old_logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    policy: str = "ppo_clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_level: str = "token",
    sequence_ids_T: Tensor | None = None,
    kl: str = "k3",
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> PolicyLoss:
    """The policy-gradient loss of a packed batch, with its gradients computed on the way.

        L = Σ_t w_t · ( policy_t + β·KL_t − γ·H_t ),    r_t = exp(logp_t − old_t)

    Three matmuls per token with a gradient, one per token whose gradient is exactly zero, none
    per dead token (weight 0); a sequence ratio costs one more. `loss_math` holds every equation.
    The gradient flows to ``hidden_TH``, ``weight_VH`` and ``bias``; all else is constant.

    Args:
        hidden_TH: hidden states, [tokens, hidden size].
        weight_VH: the head's weight, [vocabulary, hidden size].
        targets_T: int64 token ids; anything, −100 too, on dead tokens.
        advantages_T: A_t; a correction for the sampler's mismatch multiplies it.
        token_weights_T: w_t: mask and aggregation (GRPO 2402.03300, DAPO 2503.14476, Dr. GRPO
            2503.20783 differ only here). A token with weight 0 is dead and touches nothing.
        old_logp_T: log-probs under the sampling policy; None means on-policy, r = 1.
        ref_logp_T: log-probs under the KL's reference policy.
        policy: "ppo_clip": −min(r·A, clip(r, 1−clip_low, 1+clip_high)·A), PPO 1707.06347;
            "cispo": −stop_gradient(clip(r, …))·A·logp, 2506.13585; "none": −r·A.
        clip_low, clip_high: distance of the clip from ratio 1; DAPO raises the upper one.
        dual_clip: c > 1, for A < 0: −max(min(…), c·A), 1912.09729.
        ratio_level: "token", or "sequence" for r = exp(mean over the sequence's live tokens of
            logp − old), GSPO 2507.18071.
        sequence_ids_T: integers, equal within a sequence; needed for the sequence ratio.
        kl: estimator "k1" logp − ref, "k2" ½(logp − ref)², "k3" exp(d) − d − 1, d = ref − logp.
        kl_coef: β ≥ 0; other than 0 it needs ``ref_logp_T``.
        entropy_coef: γ; positive rewards entropy.
        bias: [vocabulary], added before the softcap.
        temperature: τ > 0, one number or a [T] vector; that of the sampler.
        softcap: s > 0 in softcap(u) = s·tanh(u/s), applied before the temperature.
        backend: one of `backends()`, or "auto".

    Raises:
        ValueError: an option, shape, dtype, device, number, target or backend that does not fit.
    """
    rows_backend = resolve_backend(backend)
    options = PolicyOptions(
        policy, clip_low, clip_high, dual_clip, ratio_level, kl, kl_coef, entropy_coef
    )
    check_matrices(hidden_TH, weight_VH, targets_T)
    check_vector("token_weights_T", token_weights_T, hidden_TH)
    rows_L = token_weights_T.nonzero().squeeze(1)
    tokens = TokenData(advantages_T, token_weights_T, old_logp_T, ref_logp_T, sequence_ids_T)
    check_tokens(tokens, options)
    tokens_L = live_tokens(tokens, hidden_TH, rows_L)
    head = make_head(
        hidden_TH,
        weight_VH,
        targets_T,
        rows_L,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
    )
    needs = Needs(
        *(
            torch.is_grad_enabled() and x is not None and x.requires_grad
            for x in (hidden_TH, weight_VH, bias)
        )
    )
    with torch.no_grad():
        stats, losses, gradients = chunks.policy_loss(head, rows_backend, tokens_L, options, needs)
    loss = losses.loss.sum()
    if gradients is not None:
        loss = AttachGradients.apply(  # type: ignore[no-untyped-call]
            loss,
            hidden_TH,
            weight_VH,
            bias,
            gradients.hidden_TH,
            gradients.weight_VH,
            gradients.bias_V,
        )
    total = hidden_TH.shape[0]
    return PolicyLoss(
        loss=loss,
        logp_T=scatter_rows(stats.logp, rows_L, total),
        entropy_T=scatter_rows(stats.entropy, rows_L, total),
        clipped_T=scatter_rows(losses.clipped, rows_L, total),
        kl_T=None if losses.kl is None else scatter_rows(losses.kl, rows_L, total),
        live_rows=len(rows_L),
        gradient_rows=0 if gradients is None else gradients.rows,
    )
