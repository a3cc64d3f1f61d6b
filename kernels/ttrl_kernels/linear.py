"""Log-probs and policy loss of a linear head: the two functions that most callers want.

The package's docstring has the notation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttrl_kernels import ops
from ttrl_kernels.inputs import check_inputs, check_token_vectors
from ttrl_kernels.loss_math import PolicyLoss
from ttrl_kernels.signature import HeadInputs
from ttrl_kernels.token_data import TokenData


class LogProbs(NamedTuple):
    """Log-prob and entropy of each token; 0 on ignored tokens.

    Differentiable in hidden states, weight and bias.
    """

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
    support_TM: Tensor | None = None,
    backend: str = "auto",
) -> LogProbs:
    """Compute each target's log-prob and each row's entropy: one matmul forward, three backward.

    Args:
        hidden_TH: hidden states, [tokens, hidden size].
        weight_VH: the head's weight, [vocabulary, hidden size].
        targets_T: int64 token ids; −100 marks a token to skip, which costs nothing.
        bias: [vocabulary], added before the softcap.
        temperature: τ > 0, one number or a [T] vector.
        softcap: s > 0 in softcap(u) = s·tanh(u/s), applied before the temperature.
        support_TM: integers [T, M], the token ids that could have been drawn in each row, padded
            with −1: the distribution is that over them, and a row of −1 has all tokens. None: all
            rows have.
        backend: one of `backends()`, or "auto".

    Raises:
        ValueError: a shape, dtype, device, number, target or backend that does not fit.
    """
    head = _head(hidden_TH, weight_VH, targets_T, bias, temperature, softcap, support_TM, backend)
    _, _, logp_T, entropy_T = ops.logprob(*head)
    return LogProbs(logp_T, entropy_T)


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
    ratio_penalty_T: Tensor | None = None,
    off_policy_mask: float | None = None,
    kl: str = "k3",
    kl_coef: float = 0.0,
    kl_bias_correction: bool = False,
    entropy_coef: float = 0.0,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    support_TM: Tensor | None = None,
    backend: str = "auto",
) -> PolicyLoss:
    """Compute the policy-gradient loss of a packed batch, and its gradients on the way.

        L = Σ_t w_t · ( policy_t + λ_t·|log r_t| + β·KL_t − γ·H_t ),    r_t = exp(logp_t − old_t)

    Three matmuls per token with a gradient, one per token whose gradient is exactly zero, none
    per dead token (weight 0); what needs whole sequences costs one more. `loss_math` holds every
    equation.
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
        policy: a name in `ttrl_kernels.policy_terms`, which has the equations: "ppo_clip" (PPO
            1707.06347), "cispo" (2506.13585), "sapo" (2511.20347), "gmpo" (2507.20673), "dppo_tv"
            and "dppo_kl" (2602.04879), or "none" for −r·A.
        clip_low: distance of the clip below ratio 1; below log-ratio 0 in "gmpo"; of the
            probability or its divergence in "dppo_tv" and "dppo_kl".
        clip_high: the same above; DAPO raises it.
        dual_clip: c > 1, for A < 0: −max(min(…), c·A), 1912.09729.
        ratio_level: "token", or "sequence" for r = exp(mean over the sequence's live tokens of
            logp − old), GSPO 2507.18071.
        sequence_ids_T: integers, equal within a sequence; needed for the sequence ratio, "gmpo"
            and ``off_policy_mask``.
        ratio_penalty_T: λ_t ≥ 0, KL-Cov's (2505.22617); None is 0.
        off_policy_mask: drop the policy term where A < 0 and the mean over the sequence of
            old − logp is above it (DeepSeek-V3.2); None drops nothing.
        kl: estimator "k1" logp − ref, "abs" its magnitude, "k2" ½(logp − ref)², "k3"
            exp(d) − d − 1, d = ref − logp; "k1+", "k3+", "abs+" have the gradient of "k2".
        kl_coef: β ≥ 0; other than 0 it needs ``ref_logp_T``.
        kl_bias_correction: multiply KL_t by r_t, with its gradient (DeepSeek-V3.2).
        entropy_coef: γ; positive rewards entropy.
        bias: [vocabulary], added before the softcap.
        temperature: τ > 0, one number or a [T] vector; that of the sampler.
        softcap: s > 0 in softcap(u) = s·tanh(u/s), applied before the temperature.
        support_TM: integers [T, M], the token ids that could have been drawn in each row, padded
            with −1: the distribution is that over them, and a row of −1 has all tokens. None: all
            rows have.
        backend: one of `backends()`, or "auto".

    Raises:
        ValueError: an option, shape, dtype, device, number, target or backend that does not fit.
    """
    head = _head(hidden_TH, weight_VH, targets_T, bias, temperature, softcap, support_TM, backend)
    tokens = TokenData(
        advantages_T, token_weights_T, old_logp_T, ref_logp_T, sequence_ids_T, ratio_penalty_T
    )
    check_token_vectors(tokens, hidden_TH)
    options = (
        policy,
        clip_low,
        clip_high,
        dual_clip,
        ratio_level,
        off_policy_mask,
        kl,
        kl_coef,
        kl_bias_correction,
        entropy_coef,
    )
    differentiable = (hidden_TH, weight_VH, bias)
    needs = (torch.is_grad_enabled() and x is not None and x.requires_grad for x in differentiable)
    loss, logp_T, entropy_T, clipped_T, kl_T, live_rows, gradient_rows, *_ = ops.policy_loss(
        *head, *tokens, *options, *needs
    )
    return PolicyLoss(
        loss=loss,
        logp_T=logp_T,
        entropy_T=entropy_T,
        clipped_T=clipped_T,
        kl_T=None if ref_logp_T is None else kl_T,
        live_rows=live_rows,
        gradient_rows=gradient_rows,
    )


def _head(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
    support_TM: Tensor | None,
    backend: str,
) -> HeadInputs:
    """Check what log-probs are computed from; return it as operators take it."""
    check_inputs(hidden_TH, weight_VH, targets_T, bias, temperature, support_TM)
    one, each_T = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    return HeadInputs(
        hidden_TH, weight_VH, bias, targets_T, one, each_T, softcap, backend, support_TM
    )
