"""Checks on what the caller passes, before any work: what is wrong, what came, what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttrl_kernels.chunks import Head
from ttrl_kernels.loss_math import TokenData, accumulation_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
"""float16 is absent on purpose: gradients scaled by 1/tokens underflow in it."""


def make_head(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_L: Tensor,
    *,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
) -> Head:
    """The head over the live rows. Raises ValueError if a shape, dtype or number is off.

    Targets and per-token temperatures are only checked, and only read, on live rows.
    """
    vocabulary = weight_VH.shape[0]
    if bias is not None and (bias.shape != (vocabulary,) or bias.dtype != weight_VH.dtype):
        raise ValueError(
            f"bias is {_describe(bias)}, expected {weight_VH.dtype} [{vocabulary}], one per row "
            "of the weight"
        )
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
    return Head(
        hidden_TH,
        weight_VH,
        bias,
        rows_L,
        targets_L,
        _live_temperature(temperature, hidden_TH, rows_L),
        softcap,
    )


def check_matrices(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> None:
    """Raise ValueError if hidden, weight and targets do not belong together."""
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


def check_vector(name: str, vector: Tensor, hidden_TH: Tensor, *, integer: bool = False) -> None:
    """Raise ValueError unless the vector has one floating (or integer) entry per token."""
    tokens = hidden_TH.shape[0]
    right_kind = (
        not (vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool)
        if integer
        else vector.is_floating_point()
    )
    if vector.shape != (tokens,) or not right_kind or vector.device != hidden_TH.device:
        kind = "an integer" if integer else "a floating"
        raise ValueError(
            f"{name} is {_describe(vector)}, expected {kind} vector [{tokens}] on "
            f"{hidden_TH.device}, one entry per row of hidden_TH"
        )


def live_tokens(tokens: TokenData, hidden_TH: Tensor, rows_L: Tensor) -> TokenData:
    """The live tokens' data in the dtype of the loss. Raises ValueError on a wrong vector."""
    for name, vector in zip(TokenData._fields, tokens, strict=True):
        if vector is not None:
            check_vector(_ARGUMENTS[name], vector, hidden_TH, integer=name == "sequence_ids")
    return tokens.at(rows_L).to(accumulation_dtype(hidden_TH.dtype))


_ARGUMENTS = {
    "advantages": "advantages_T",
    "weights": "token_weights_T",
    "old_logp": "old_logp_T",
    "ref_logp": "ref_logp_T",
    "sequence_ids": "sequence_ids_T",
}


def _live_temperature(temperature: float | Tensor, hidden_TH: Tensor, rows_L: Tensor) -> Tensor:
    dtype = accumulation_dtype(hidden_TH.dtype)
    if not isinstance(temperature, Tensor):
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature}, expected a positive number")
        return torch.full(rows_L.shape, temperature, dtype=dtype, device=hidden_TH.device)
    check_vector("temperature", temperature, hidden_TH)
    temperature_L = temperature[rows_L].to(dtype)
    if not bool(((temperature_L > 0) & temperature_L.isfinite()).all()):
        raise ValueError(
            "temperature has an entry that is not a positive number on a live token, expected "
            "every one positive: 1.0 leaves the logits as they are"
        )
    return temperature_L


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
