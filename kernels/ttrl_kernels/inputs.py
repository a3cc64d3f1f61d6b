"""Checks on what the caller passes, before any work: what is wrong, what came, what to do.

Those that only look at shapes and dtypes are made where the caller calls, while a compiler traces
as well; those that look at values are made inside the operators, at run time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttrl_kernels.chunks import Head
from ttrl_kernels.loss_math import accumulation_dtype
from ttrl_kernels.signature import HeadInputs
from ttrl_kernels.token_data import TokenData

IGNORED_TARGET = -100
"""The target that `linear_logprob` skips."""

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
"""float16 is absent on purpose: gradients scaled by 1/tokens underflow in it."""


def check_inputs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    bias_V: Tensor | None,
    temperature: float | Tensor,
    support_TM: Tensor | None,
) -> None:
    """Raise ValueError if the head's tensors do not belong together; looks at no value."""
    if hidden_TH.dim() != 2:
        raise ValueError(
            f"hidden_TH is {_describe(hidden_TH)}, expected [tokens, hidden size]: flatten batch "
            "and sequence with hidden.reshape(-1, hidden.shape[-1])"
        )
    if hidden_TH.dtype not in DTYPES:
        raise ValueError(
            f"hidden_TH is {hidden_TH.dtype}, expected one of {', '.join(map(str, DTYPES))}"
        )
    if weight_VH.dim() != 2 or weight_VH.shape[1] != hidden_TH.shape[1] or 0 in weight_VH.shape:
        raise ValueError(
            f"weight_VH is {_describe(weight_VH)}, expected [vocabulary, {hidden_TH.shape[1]}] to "
            f"fit hidden_TH {list(hidden_TH.shape)}; a weight of size 0 is a shard that was not "
            "gathered"
        )
    if weight_VH.dtype != hidden_TH.dtype or weight_VH.device != hidden_TH.device:
        raise ValueError(
            f"weight_VH is {weight_VH.dtype} on {weight_VH.device}, expected {hidden_TH.dtype} on "
            f"{hidden_TH.device} like hidden_TH: convert one of them with .to(...), which keeps "
            "the gradient"
        )
    check_vector("targets_T", targets_T, hidden_TH, integer=True)
    if targets_T.dtype != torch.int64:
        raise ValueError(f"targets_T is {targets_T.dtype}, expected torch.int64: use .long()")
    vocabulary = weight_VH.shape[0]
    if bias_V is not None and (
        bias_V.shape != (vocabulary,)
        or bias_V.dtype != weight_VH.dtype
        or bias_V.device != weight_VH.device
    ):
        raise ValueError(
            f"bias is {_describe(bias_V)}, expected {weight_VH.dtype} [{vocabulary}] on "
            f"{weight_VH.device}, one per row of the weight"
        )
    if isinstance(temperature, Tensor):
        check_vector("temperature", temperature, hidden_TH)
    if support_TM is not None and (
        support_TM.dtype not in (torch.int32, torch.int64)
        or support_TM.dim() != 2
        or support_TM.shape[0] != hidden_TH.shape[0]
        or support_TM.device != hidden_TH.device
    ):
        raise ValueError(
            f"support_TM is {_describe(support_TM)}, expected torch.int32 or torch.int64 "
            f"[{hidden_TH.shape[0]}, members] on {hidden_TH.device}: token ids, padded with -1"
        )


def check_token_vectors(tokens: TokenData, hidden_TH: Tensor) -> None:
    """Raise ValueError unless every vector of the loss has one entry of its kind per token."""
    for name, vector in zip(TokenData._fields, tokens, strict=True):
        if vector is not None:
            argument = "token_weights_T" if name == "weights" else f"{name}_T"
            check_vector(argument, vector, hidden_TH, integer=name == "sequence_ids")


def check_vector(name: str, vector: Tensor, hidden_TH: Tensor, *, integer: bool = False) -> None:
    """Raise ValueError unless the vector has one float32, float64 (or integer) entry per token.

    No bfloat16: it moves a log-prob of -10 by up to 0.03. Mixed precision that casts everything
    a module receives (FSDP2's cast_forward_inputs, for one) must leave these vectors alone.
    """
    if integer:
        kind = "an integer"
        right = not (
            vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool
        )
    else:
        kind = "a float32 or float64"
        right = vector.dtype in (torch.float32, torch.float64)
    if not right or vector.shape != hidden_TH.shape[:1] or vector.device != hidden_TH.device:
        raise ValueError(
            f"{name} is {_describe(vector)}, expected {kind} vector [{hidden_TH.shape[0]}] on "
            f"{hidden_TH.device}, one entry per row of hidden_TH"
        )


def live_head(inputs: HeadInputs, rows_L: Tensor) -> Head:
    """Make the head over the live rows. Raises ValueError if a target or number is out of range.

    Targets and per-token temperatures are only checked, and only read, on live rows.
    """
    hidden_TH, weight_VH, bias_V, targets_T, temperature, temperature_T, softcap = inputs[:7]
    vocabulary = weight_VH.shape[0]
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap}, expected a positive number, or None for no cap")
    targets_L = targets_T[rows_L]
    wrong = ((targets_L < 0) | (targets_L >= vocabulary)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"targets_T[{int(rows_L[first])}] is {int(targets_L[first])}, expected 0 to "
            f"{vocabulary - 1} on a live token ({len(wrong)} such tokens): give tokens without a "
            "loss weight 0 (linear_policy_loss) or target -100 (linear_logprob)"
        )
    temperature_L = _live_temperature(temperature, temperature_T, hidden_TH, rows_L)
    support_LM = _live_support(inputs.support_TM, targets_L, rows_L, vocabulary)
    return Head(hidden_TH, weight_VH, bias_V, rows_L, targets_L, temperature_L, softcap, support_LM)


def _live_support(
    support_TM: Tensor | None, targets_L: Tensor, rows_L: Tensor, vocabulary: int
) -> Tensor | None:
    if support_TM is None:
        return None
    support_LM = support_TM[rows_L].long()
    sorted_LM = support_LM.sort(1).values
    twice_LN = (sorted_LM[:, 1:] == sorted_LM[:, :-1]) & (sorted_LM[:, 1:] >= 0)
    outside_L = (support_LM >= 0).any(1) & (support_LM != targets_L[:, None]).all(1)
    range_LM = (support_LM < -1) | (support_LM >= vocabulary)
    for what, wrong_L in (
        ("lacks the target", outside_L),
        ("holds a token twice", twice_LN.any(1)),
        (f"holds a number that is not -1 to {vocabulary - 1}", range_LM.any(1)),
    ):
        if bool(wrong_L.any()):
            first = int(wrong_L.nonzero()[0])
            raise ValueError(
                f"support_TM[{int(rows_L[first])}] {what}, expected the ids of all tokens that "
                f"could have been drawn, {int(targets_L[first])} among them, padded with -1 "
                f"({int(wrong_L.sum())} such tokens)"
            )
    return support_LM


def _live_temperature(
    temperature: float, temperature_T: Tensor | None, hidden_TH: Tensor, rows_L: Tensor
) -> Tensor:
    dtype = accumulation_dtype(hidden_TH.dtype)
    if temperature_T is None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature}, expected a positive number")
        return torch.full(rows_L.shape, temperature, dtype=dtype, device=hidden_TH.device)
    temperature_L = temperature_T[rows_L].to(dtype)
    if not bool(((temperature_L > 0) & temperature_L.isfinite()).all()):
        raise ValueError(
            "temperature has an entry that is not a positive number on a live token, expected "
            "every one positive: 1.0 leaves the logits as they are"
        )
    return temperature_L


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
