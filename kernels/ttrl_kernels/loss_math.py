"""The policy loss as short, readable PyTorch: the one place that holds the maths.

`policy_loss_reference` materializes every logit and lets autograd do the rest. It is the oracle
that each faster path is tested against, and runs in whatever floating dtype it is given (float64
for the truth). The faster paths call the same `token_losses` on their own log-probs, so an option
of the loss exists once, here, and never inside a row kernel.

Shapes by suffix: ``_T`` packed tokens, ``_L`` live tokens (token weight not 0), ``_H`` hidden
size, ``_V`` vocabulary. Dead tokens are dropped before any maths, so that an infinite or NaN
``old_logp`` on a masked position never meets an ``exp``: zero times infinity would be NaN.

Papers: PPO 1707.06347, GRPO 2402.03300, DAPO 2503.14476, Dr. GRPO 2503.20783, GSPO 2507.18071,
CISPO 2506.13585, dual clip 1912.09729 (arXiv numbers). GRPO, DAPO and Dr. GRPO differ only in the
token weights: 1/(G·len), 1/Σlen and 1/(G·max_len).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttrl_kernels.policy_terms import POLICY_TERMS

LOG_RATIO_LIMIT = 20.0
"""exp(20) = 4.9e8 still squares within fp32; past the limit the gradient is zero, not wrong."""

RATIO_LEVELS = ("token", "sequence")
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True)
class PolicyOptions:
    """The options of the loss, checked when built, so that every later function may trust them.

    Raises ValueError for an unknown name or a number out of range.
    """

    policy: str = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio_level: str = "token"
    kl: str = "k3"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        """Check every option; the class says what is raised."""
        _require_choice("policy", self.policy, tuple(POLICY_TERMS))
        _require_choice("ratio_level", self.ratio_level, RATIO_LEVELS)
        _require_choice("kl", self.kl, KL_ESTIMATORS)
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a distance from ratio 1 that is "
                    f"not negative: 0.2 clips at {'0.8' if name == 'clip_low' else '1.2'}"
                )
        if not (math.isfinite(self.kl_coef) and self.kl_coef >= 0):
            raise ValueError(f"kl_coef is {self.kl_coef}, expected a finite number >= 0")
        if not math.isfinite(self.entropy_coef):
            raise ValueError(f"entropy_coef is {self.entropy_coef}, expected a finite number")
        if self.dual_clip is not None and self.policy != "ppo_clip":
            raise ValueError(
                f"dual_clip is {self.dual_clip} with policy={self.policy!r}; it only exists for "
                "policy='ppo_clip': leave it None"
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip is {self.dual_clip}, expected a ratio above 1, such as 3")


def _require_choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise ValueError(f"{name} is {got!r}, expected one of {', '.join(choices)}")


class TokenData(NamedTuple):
    """Inputs of the loss for each token, besides the model's own outputs; constants."""

    advantages: Tensor
    """How much better than its group the token's completion was."""
    weights: Tensor
    """Mask and aggregation in one number; never 0 on a live token."""
    old_logp: Tensor | None
    """Log-prob under the policy that sampled; None means on-policy (ratio 1)."""
    ref_logp: Tensor | None
    """Log-prob under the frozen reference of the KL term, if there is one."""
    sequence_ids: Tensor | None
    """Which sequence a token belongs to; only the sequence-level ratio reads it."""

    def at(self, index: Tensor) -> TokenData:
        """Select the tokens at these positions."""
        return self._map(lambda x: x[index])

    def to(self, dtype: torch.dtype) -> TokenData:
        """Convert every floating vector to ``dtype``."""
        return self._map(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenData:
        old, ref, ids = (
            None if x is None else change(x)
            for x in (self.old_logp, self.ref_logp, self.sequence_ids)
        )
        return TokenData(change(self.advantages), change(self.weights), old, ref, ids)


def check_tokens(tokens: TokenData, options: PolicyOptions) -> None:
    """Raise ValueError where an option needs a vector that is not there."""
    if options.kl_coef != 0 and tokens.ref_logp is None:
        raise ValueError(
            f"kl_coef is {options.kl_coef} but ref_logp_T is None: pass the reference model's "
            "log-probs, or kl_coef=0"
        )
    if options.ratio_level == "sequence" and tokens.sequence_ids is None:
        raise ValueError(
            "ratio_level is 'sequence' but sequence_ids_T is None: pass for each token the number "
            "of its sequence, or ratio_level='token'"
        )


class TokenLosses(NamedTuple):
    """The loss of each live token, and what happened to it."""

    loss: Tensor
    """Weighted losses, whose sum is the loss of the batch."""
    clipped: Tensor
    """bool: the clip is what decides this token's policy term."""
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
    """bool: where the clip decided the policy term (its gradient is zero, or capped in CISPO)."""
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
) -> tuple[Tensor, Tensor]:
    """Compute the log-prob of each target and the entropy of each row, from full logits.

    z = softcap(W x + b) / τ,  softcap(u) = s·tanh(u/s)
    logp = z_y − lse(z),  H = −Σ_v p_v log p_v,  in nats; p_v = 0 contributes 0
    """
    logits_TV = F.linear(hidden_TH, weight_VH, bias)
    logits_TV = logits_TV.to(accumulation_dtype(logits_TV.dtype))
    if softcap is not None:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None]
    log_p_TV = torch.log_softmax(logits_TV / temperature, dim=-1)
    logp_T = log_p_TV.gather(1, targets_T[:, None]).squeeze(1)
    p_TV = log_p_TV.exp()
    entropy_T = -(p_TV * log_p_TV.masked_fill(p_TV == 0, 0)).sum(-1)
    return logp_T, entropy_T


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


def sequence_mean(values_L: Tensor, ids_L: Tensor) -> Tensor:
    """Return at each token the mean over the tokens that share its id; ids in any order."""
    mean_L: Tensor = _SequenceMean.apply(values_L, ids_L)  # type: ignore[no-untyped-call]
    return mean_L


def policy_ratio(logp_L: Tensor, tokens: TokenData, level: str) -> Tensor:
    """Compute the importance ratio of each live token.

    token:     r_t = exp(logp_t − old_t)
    sequence:  r_t = exp(mean over the live tokens of t's sequence of logp − old)   (GSPO)
    On-policy, old = stop_gradient(logp): the ratio is 1 and still carries the gradient.
    """
    old_L = logp_L.detach() if tokens.old_logp is None else tokens.old_logp
    log_ratio_L = logp_L - old_L
    if level == "sequence":
        assert tokens.sequence_ids is not None
        log_ratio_L = sequence_mean(log_ratio_L, tokens.sequence_ids)
    return clamp_log_ratio(log_ratio_L).exp()


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str) -> Tensor:
    """Estimate KL(policy ‖ reference) per token, from the sampled token alone.

    k1 = logp − ref,  k2 = ½(logp − ref)²,  k3 = exp(d) − d − 1 with d = clamp(ref − logp, ±20)

    k3 clamps d in all its places: with only the exp clamped, the part that is left beyond the
    limit would push the policy away from the reference.
    """
    if kind == "k1":
        return logp - ref_logp
    if kind == "k2":
        return 0.5 * (logp - ref_logp).square()
    d = clamp_log_ratio(ref_logp - logp)
    return d.expm1() - d


def token_losses(
    logp_L: Tensor, entropy_L: Tensor, tokens: TokenData, options: PolicyOptions
) -> TokenLosses:
    """Compute the losses w_t·(policy_t + β·KL_t − γ·H_t) of live tokens.

    They are differentiable in logp and entropy.
    """
    ratio_L = policy_ratio(logp_L, tokens, options.ratio_level)
    policy_term = POLICY_TERMS[options.policy]
    loss_L, clipped_L = policy_term(ratio_L, logp_L, tokens.advantages, options)
    kl_L = None
    if tokens.ref_logp is not None:
        kl_L = kl_estimate(logp_L, tokens.ref_logp, options.kl)
        # A coefficient of 0 switches its term off: 0·(infinite KL) must not become NaN.
        if options.kl_coef != 0:
            loss_L = loss_L + options.kl_coef * kl_L
    if options.entropy_coef != 0:
        loss_L = loss_L - options.entropy_coef * entropy_L
    return TokenLosses(tokens.weights * loss_L, clipped_L, kl_L)


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
    kl: str = "k3",
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> PolicyLoss:
    """Compute the oracle of `linear_policy_loss`: the same arguments, all logits in memory.

    Differentiable in ``hidden_TH``, ``weight_VH`` and ``bias`` by plain autograd.
    """
    options = PolicyOptions(
        policy, clip_low, clip_high, dual_clip, ratio_level, kl, kl_coef, entropy_coef
    )
    rows_L = token_weights_T.nonzero().squeeze(1)
    logp_L, entropy_L = dense_logprob(
        hidden_TH[rows_L],
        weight_VH,
        targets_T[rows_L],
        bias=bias,
        temperature=temperature[rows_L] if isinstance(temperature, Tensor) else temperature,
        softcap=softcap,
    )
    tokens = TokenData(advantages_T, token_weights_T, old_logp_T, ref_logp_T, sequence_ids_T)
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
