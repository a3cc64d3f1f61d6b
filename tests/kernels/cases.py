"""Random inputs with everything a packed batch has, and one way to run any implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ttrl_kernels import backends
from ttrl_kernels.loss_math import PolicyLoss, dense_logprob, policy_loss_reference

INTERPRETED = "interpreter" in backends()["triton"]
# Enough for two of `small_chunks`; each row takes long in Triton's interpreter.
T, H, V = 12 if INTERPRETED else 41, 16, 101

DTYPES = (torch.float64, torch.float32, torch.bfloat16)

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]
"""Hidden states, weight, targets, keywords."""
_NATIVE = backends()["native"]
# Every row backend of this machine in every dtype it works in; in Triton's interpreter its own.
BACKENDS = [pytest.param("torch", dtype, id=f"torch-{dtype}") for dtype in DTYPES] + [
    pytest.param(
        "native",
        dtype,
        id=f"native-{dtype}",
        marks=pytest.mark.skipif(_NATIVE != "available", reason=_NATIVE),
    )
    for dtype in DTYPES[1:]
]
if INTERPRETED:
    BACKENDS = [pytest.param("triton", torch.float32, id="triton-torch.float32")]

# Far from the clip borders log 0.8, log 1.2 and log 3: which side a token is on must not depend
# on the dtype, or the comparison would be about luck.
LOG_RATIOS = (-0.6, -0.1, 0.0, 0.1, 0.6, 2.0)

OPTIONS = {
    "on_policy": {"policy": "none", "old_logp_T": None},
    "on_policy_clip": {"old_logp_T": None},
    "none": {"policy": "none"},
    "clip": {},
    "clip_higher": {"clip_low": 0.3, "clip_high": 1.5},
    "dual_clip": {"dual_clip": 3.0},
    "cispo": {"policy": "cispo"},
    "sapo": {"policy": "sapo"},
    "cispo_capped": {"policy": "cispo", "clip_low": 1.0, "clip_high": 1.5},
    "gmpo": {"policy": "gmpo", "clip_low": 0.3, "clip_high": 0.3},
    "gmpo_on_policy": {"policy": "gmpo", "old_logp_T": None},
    "dppo_tv": {"policy": "dppo_tv", "clip_low": 0.0018, "clip_high": 0.0014},
    "dppo_kl": {"policy": "dppo_kl", "clip_low": 0.0006, "clip_high": 0.0007},
    "off_policy_mask": {"policy": "none", "off_policy_mask": 0.3},
    "off_policy_clip": {"off_policy_mask": 0.3, "dual_clip": 3.0},
    "kl_cov": {"policy": "none", "ratio_penalty_T": 0.5},
    "sequence_clip": {"ratio_level": "sequence"},
    "sequence_none": {"ratio_level": "sequence", "policy": "none"},
    "sequence_cispo": {"ratio_level": "sequence", "policy": "cispo"},
    "sequence_on_policy": {"ratio_level": "sequence", "old_logp_T": None},
    "kl_k1": {"kl": "k1", "kl_coef": 0.3},
    "kl_k2": {"kl": "k2", "kl_coef": 0.3},
    "kl_k3": {"kl": "k3", "kl_coef": 0.3},
    "kl_abs": {"kl": "abs", "kl_coef": 0.3},
    "kl_k1+": {"kl": "k1+", "kl_coef": 0.3},
    "kl_k3+": {"kl": "k3+", "kl_coef": 0.3},
    "kl_abs+": {"kl": "abs+", "kl_coef": 0.3},
    "kl_corrected": {"kl": "k3", "kl_coef": 0.3, "kl_bias_correction": True},
    "kl_k3+_corrected": {"kl": "k3+", "kl_coef": 0.3, "kl_bias_correction": True},
    "kl_corrected_on_policy": {"kl_coef": 0.3, "kl_bias_correction": True, "old_logp_T": None},
    "entropy": {"entropy_coef": 0.2},
    "entropy_penalty": {"entropy_coef": -0.2},
    "sequence_all": {
        "ratio_level": "sequence",
        "dual_clip": 3.0,
        "kl_coef": 0.3,
        "entropy_coef": 0.2,
    },
    "gmpo_all": {
        "policy": "gmpo",
        "off_policy_mask": 0.3,
        "ratio_penalty_T": 0.5,
        "kl": "abs",
        "kl_coef": 0.3,
        "kl_bias_correction": True,
        "entropy_coef": 0.2,
    },
}

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "temperature": {"temperature": 0.6},
    "temperature_T": {"temperature": "per token"},
    "softcap": {"softcap": 4.0},
    "all": {"bias": True, "temperature": "per token", "softcap": 4.0},
    "support": {"support_TM": True},
    "all_of_a_support": {
        "bias": True,
        "temperature": "per token",
        "softcap": 4.0,
        "support_TM": True,
    },
}


def head_case(
    dtype: torch.dtype = torch.float64,
    head: str = "plain",
    seed: int = 0,
    shape: tuple[int, int, int] = (T, H, V),
) -> Case:
    """(hidden, weight, targets, keywords of the head), logits with a spread of about 2.5."""
    tokens, hidden_size, vocabulary = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    options = dict(HEADS[head])
    hidden = normal(tokens, hidden_size).to(dtype).requires_grad_()
    weight = (2.5 * normal(vocabulary, hidden_size) / hidden_size**0.5).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=g)
    if options.get("bias"):
        options["bias"] = normal(vocabulary).to(dtype).requires_grad_()
    if options.get("temperature") == "per token":
        options["temperature"] = 0.5 + torch.rand(tokens, generator=g)
    if options.get("support_TM"):
        options["support_TM"] = supports(targets, vocabulary, g)
    return hidden, weight, targets, options


def supports(targets: torch.Tensor, vocabulary: int, g: torch.Generator) -> torch.Tensor:
    """Up to 9 members in any order, the target among them; some have it alone, and some rows have
    all tokens. Padding is anywhere."""
    rows = torch.full((len(targets), 9), -1)
    for row, target in zip(rows, targets.tolist(), strict=True):
        count = int(torch.randint(-2, 10, (), generator=g))
        if count > 0:
            others = torch.randperm(vocabulary, generator=g)
            members = torch.cat([torch.tensor([target]), others[others != target][: count - 1]])
            row[torch.randperm(9, generator=g)[: len(members)]] = members
    return rows


def loss_case(
    dtype: torch.dtype = torch.float64,
    head: str = "plain",
    options: str = "clip",
    seed: int = 0,
    shape: tuple[int, int, int] = (T, H, V),
) -> Case:
    """(hidden, weight, targets, keywords) of a policy loss.

    A quarter of the tokens is dead, with a target, old and reference log-prob that must never be
    read; some advantages are 0; sequences are interleaved.
    """
    hidden, weight, targets, head_options = head_case(dtype, head, seed, shape)
    tokens = len(targets)
    g = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        logp, _ = dense_logprob(hidden, weight, targets, **head_options)
    ids = torch.randint(len(LOG_RATIOS), (tokens,), generator=g)
    noise = 0.02 * torch.randn(tokens, generator=g)
    old = logp.double() - torch.tensor(LOG_RATIOS)[ids] - noise
    gap = torch.randn(tokens, generator=g)
    ref = logp.double() + gap + 0.1 * gap.sign()  # neither is on the kink of |logp - ref|
    weights = 0.1 + torch.rand(tokens, generator=g)
    dead = torch.rand(tokens, generator=g) < 0.25
    weights[dead] = 0
    old[dead], ref[dead], targets[dead] = float("inf"), float("nan"), -100
    advantages = torch.randn(tokens, generator=g)
    advantages[torch.rand(tokens, generator=g) < 0.2] = 0
    keywords = {
        "advantages_T": advantages,
        "token_weights_T": weights,
        "old_logp_T": old.to(torch.promote_types(dtype, torch.float32)),
        "ref_logp_T": ref.to(torch.promote_types(dtype, torch.float32)),
        "sequence_ids_T": ids,
        **head_options,
        **OPTIONS[options],
    }
    if "ratio_penalty_T" in keywords:  # of some tokens, none of them on the kink of |log r|
        far = (torch.tensor(LOG_RATIOS)[ids] != 0) & (torch.rand(tokens, generator=g) < 0.5)
        keywords["ratio_penalty_T"] = keywords["ratio_penalty_T"] * far
    return hidden, weight, targets, keywords


def as_float64(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, keywords: dict[str, Any]
) -> Case:
    """The same case, every floating tensor exactly as it is but in float64, as fresh leaves."""

    def widen(x: Any) -> Any:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        return x.detach().double().requires_grad_(x.requires_grad)

    return widen(hidden), widen(weight), targets, {k: widen(v) for k, v in keywords.items()}


def leaves(
    hidden: torch.Tensor, weight: torch.Tensor, keywords: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors to differentiate by, by name."""
    named = {"hidden": hidden, "weight": weight, "bias": keywords.get("bias")}
    return {k: x for k, x in named.items() if x is not None and x.requires_grad}


def run_loss(
    function: Callable[..., PolicyLoss], case: Case, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """Outputs and gradients (of scale·loss) by name."""
    hidden, weight, targets, keywords = case
    result = function(hidden, weight, targets, **keywords)
    inputs = leaves(hidden, weight, keywords)
    grads = torch.autograd.grad(scale * result.loss, list(inputs.values()))
    outputs = {k: getattr(result, k) for k in ("loss", "logp_T", "entropy_T", "kl_T")}
    return {k: x.detach() for k, x in outputs.items()} | dict(zip(inputs, grads, strict=True))


def loss_magnitude(case: Case) -> float:
    """Sum of the magnitudes of all token losses, whose signed sum the loss is."""
    hidden, weight, targets, keywords = as_float64(*case)
    weights = keywords["token_weights_T"].requires_grad_()
    loss = policy_loss_reference(hidden, weight, targets, **keywords).loss
    (per_weight,) = torch.autograd.grad(loss, weights)  # the loss is linear in the weights
    return (per_weight * weights).abs().sum().item()
