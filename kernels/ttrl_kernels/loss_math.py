"""The policy loss as short, readable PyTorch, with `policy_terms`, `ratios` and `kl_estimators`.

`policy_loss_reference` materializes every logit and lets autograd do the rest. It is the oracle
that each faster path is tested against, and runs in whatever floating dtype it is given (float64
for the truth). The faster paths call the same `token_losses` on their own log-probs, so an option
of the loss exists once, there, and never inside a row kernel.

Shapes by suffix: ``_T`` packed tokens, ``_L`` live tokens (token weight not 0), ``_H`` hidden
size, ``_V`` vocabulary. Dead tokens are dropped before any maths, so that an infinite or NaN
``old_logp`` on a masked position never meets an ``exp``: zero times infinity would be NaN.

Papers: GRPO 2402.03300, DAPO 2503.14476, Dr. GRPO 2503.20783, GSPO 2507.18071, KL-Cov 2505.22617
(arXiv numbers); `policy_terms` names those of the policy terms. GRPO, DAPO and Dr. GRPO differ only
in the token weights: 1/(G·len), 1/Σlen and 1/(G·max_len).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttrl_kernels.kl_estimators import kl_estimate
from ttrl_kernels.policy_options import PolicyOptions
from ttrl_kernels.policy_terms import POLICY_TERMS
from ttrl_kernels.ratios import clamp_log_ratio, old_logprobs, policy_ratio, sequence_mean
from ttrl_kernels.token_data import TokenData, check_tokens


class TokenLosses(NamedTuple):
    """The loss of each live token, and what happened to it."""

    loss: Tensor
    """Weighted losses, whose sum is the loss of the batch."""
    clipped: Tensor
    """bool: the clip, or the off-policy mask, is what decides this token's policy term."""
    kl: Tensor | None
    """KL estimate against the reference, unweighted; None without a reference."""


class PolicyLoss(NamedTuple):
    """The loss of a packed batch, and what happened in it. Only ``loss`` carries a gradient.

    The per-token vectors are fp32 (float64 for float64 inputs) and 0 on dead tokens. A tuple, for
    the hooks of FSDP and ZeRO-3 find the tensors of a module's output in tuples only.
    """

    loss: Tensor
    """Scalar: the sum of weighted token losses."""
    logp_T: Tensor
    """Log-prob of each target, in nats."""
    entropy_T: Tensor
    """Entropy of each next-token distribution, in nats."""
    clipped_T: Tensor
    """bool: where the clip or the off-policy mask decided the policy term (its gradient is zero, or
    capped in CISPO)."""
    kl_T: Tensor | None
    """KL estimate per token, before β; None when no ``ref_logp_T`` was given."""
    live_rows: Tensor
    """Tokens with a weight other than 0: those that cost the forward matmul. An integer scalar on
    the CPU."""
    gradient_rows: Tensor
    """Tokens with a gradient other than exactly 0: those that cost the two backward matmuls. An
    integer scalar on the CPU."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of row statistics and losses: float32, or float64 when the inputs are."""
    return torch.promote_types(dtype, torch.float32)


def scatter_rows(values_L: Tensor, rows_L: Tensor, total: int) -> Tensor:
    """Put the live tokens' values at their places in a [total] vector, 0 (False) elsewhere."""
    out_T = values_L.new_zeros(total)
    out_T[rows_L] = values_L
    return out_T


def dense_logprob(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    support_TM: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the log-prob of each target and the entropy of each row, from full logits.

    z = softcap(W x + b) / τ,  softcap(u) = s·tanh(u/s)
    logp = z_y − lse(z),  H = −Σ_v p_v log p_v,  in nats; p_v = 0 contributes 0

    With a support, z is −inf outside of it; a row of −1 has all tokens.

    The arguments are those of `ttrl_kernels.linear_logprob`; all targets count.

    Returns:
        (logp_T, entropy_T), differentiable in hidden states, weight and bias.
    """
    logits_TV = F.linear(hidden_TH, weight_VH, bias)
    logits_TV = logits_TV.to(accumulation_dtype(logits_TV.dtype))
    if softcap is not None:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None]
    if support_TM is not None:
        all_T1 = (support_TM < 0).all(1, keepdim=True)
        ids_TV = torch.arange(logits_TV.shape[1], device=support_TM.device)
        inside_TV = (support_TM[:, :, None] == ids_TV).any(1)
        logits_TV = logits_TV.masked_fill(~(inside_TV | all_T1), -torch.inf)
    log_p_TV = torch.log_softmax(logits_TV / temperature, dim=-1)
    logp_T = log_p_TV.gather(1, targets_T[:, None]).squeeze(1)
    p_TV = log_p_TV.exp()
    entropy_T = -(p_TV * log_p_TV.masked_fill(p_TV == 0, 0)).sum(-1)
    return logp_T, entropy_T


def token_losses(
    logp_L: Tensor, entropy_L: Tensor, tokens: TokenData, options: PolicyOptions
) -> TokenLosses:
    """Compute the losses w_t·(policy_t + λ_t·|log r_t| + β·KL_t − γ·H_t) of live tokens.

    They are differentiable in logp and entropy. λ is ``tokens.ratio_penalty``, r_t the token's own
    ratio, whatever the ratio level. With a bias correction KL_t is multiplied by r_t, which has a
    gradient, too: of tokens of an older policy, that is the KL of this one (DeepSeek-V3.2).
    """
    ratio_L = policy_ratio(logp_L, tokens, options.ratio_level)
    loss_L, clipped_L = POLICY_TERMS[options.policy](ratio_L, logp_L, tokens, options)
    if options.off_policy_mask is not None:
        dropped_L = off_policy(logp_L, tokens, options.off_policy_mask)
        loss_L = torch.where(dropped_L, torch.zeros_like(loss_L), loss_L)
        clipped_L = clipped_L | dropped_L
    if tokens.ratio_penalty is not None:
        moved_L = clamp_log_ratio(logp_L - old_logprobs(logp_L, tokens)).abs()
        loss_L = loss_L + tokens.ratio_penalty * moved_L
    kl_L = None
    if tokens.ref_logp is not None:
        kl_L = kl_estimate(logp_L, tokens.ref_logp, options.kl)
        if options.kl_bias_correction:
            kl_L = policy_ratio(logp_L, tokens, "token") * kl_L
        # A coefficient of 0 switches its term off: 0·(infinite KL) must not become NaN.
        if options.kl_coef != 0:
            loss_L = loss_L + options.kl_coef * kl_L
    if options.entropy_coef != 0:
        loss_L = loss_L - options.entropy_coef * entropy_L
    return TokenLosses(tokens.weights * loss_L, clipped_L, kl_L)


def off_policy(logp_L: Tensor, tokens: TokenData, bound: float) -> Tensor:
    """Say which tokens are worse than their group in a sequence that the policy has left behind.

    A < 0 and mean over the sequence's live tokens of old − logp > bound (DeepSeek-V3.2)
    """
    left_L = sequence_mean(old_logprobs(logp_L, tokens) - logp_L.detach(), tokens.sequence_ids)
    return (tokens.advantages < 0) & (left_L > bound)


def token_gradients(
    logp_L: Tensor, entropy_L: Tensor, tokens: TokenData, options: PolicyOptions
) -> tuple[Tensor, Tensor | None]:
    """Compute dL/dlogp and dL/dentropy of each live token.

    The second is None without an entropy term. Within an operator, PyTorch has taken autograd out
    of its dispatcher, and `enable_grad` alone does not put it back.
    """
    autograd = torch._C.DispatchKey.AutogradFunctionality
    with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(autograd, False):
        logp_L, entropy_L = logp_L.detach().requires_grad_(), entropy_L.detach().requires_grad_()
        loss = token_losses(logp_L, entropy_L, tokens, options).loss.sum()
        grads = torch.autograd.grad(loss, (logp_L, entropy_L), allow_unused=True)
    return grads[0], grads[1]


def policy_loss_reference(
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
) -> PolicyLoss:
    """Compute the oracle of `linear_policy_loss`: the same arguments, all logits in memory.

    Differentiable in ``hidden_TH``, ``weight_VH`` and ``bias`` by plain autograd.
    """
    options = PolicyOptions(
        policy=policy,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        ratio_level=ratio_level,
        off_policy_mask=off_policy_mask,
        kl=kl,
        kl_coef=kl_coef,
        kl_bias_correction=kl_bias_correction,
        entropy_coef=entropy_coef,
    )
    rows_L = token_weights_T.nonzero().squeeze(1)
    logp_L, entropy_L = dense_logprob(
        hidden_TH[rows_L],
        weight_VH,
        targets_T[rows_L],
        bias=bias,
        temperature=temperature[rows_L] if isinstance(temperature, Tensor) else temperature,
        softcap=softcap,
        support_TM=None if support_TM is None else support_TM[rows_L],
    )
    tokens = TokenData(
        advantages_T, token_weights_T, old_logp_T, ref_logp_T, sequence_ids_T, ratio_penalty_T
    )
    check_tokens(tokens, options)
    losses = token_losses(logp_L, entropy_L, tokens.at(rows_L).to(logp_L.dtype), options)
    total, live = len(targets_T), torch.tensor(len(rows_L))
    return PolicyLoss(
        loss=losses.loss.sum(),
        logp_T=scatter_rows(logp_L.detach(), rows_L, total),
        entropy_T=scatter_rows(entropy_L.detach(), rows_L, total),
        clipped_T=scatter_rows(losses.clipped, rows_L, total),
        kl_T=None if losses.kl is None else scatter_rows(losses.kl.detach(), rows_L, total),
        live_rows=live,
        gradient_rows=live,
    )
