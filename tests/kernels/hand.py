"""Small float64 inputs of the loss's functions, for numbers worked out by hand."""

from __future__ import annotations

import torch
from ttrl_kernels.token_data import TokenData


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def token_data(
    advantages: torch.Tensor,
    weights: torch.Tensor | None = None,
    old: torch.Tensor | None = None,
    ref: torch.Tensor | None = None,
    ids: torch.Tensor | None = None,
    penalty: torch.Tensor | None = None,
) -> TokenData:
    """Tokens with these advantages; by default of weight 1, on-policy, without a reference."""
    weights = torch.ones_like(advantages) if weights is None else weights
    return TokenData(advantages, weights, old, ref, ids, penalty)
