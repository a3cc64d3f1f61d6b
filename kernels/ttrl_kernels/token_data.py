"""What the loss knows of each token besides the model's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ttrl_kernels.policy_options import PolicyOptions


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
    """Which sequence a token belongs to; read by options that need whole sequences."""
    ratio_penalty: Tensor | None = None
    """Weight of abs(log r) in a token's loss, r its own ratio; None is 0 everywhere."""

    def at(self, index: Tensor) -> TokenData:
        """Select the tokens at these positions."""
        return self._map(lambda x: x[index])

    def to(self, dtype: torch.dtype) -> TokenData:
        """Convert every floating vector to ``dtype``."""
        return self._map(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenData:
        advantages, weights, *others = self
        changed = (None if x is None else change(x) for x in others)
        return TokenData(change(advantages), change(weights), *changed)


def check_tokens(tokens: TokenData, options: PolicyOptions) -> None:
    """Raise ValueError where an option needs a vector that is not there."""
    if options.kl_coef != 0 and tokens.ref_logp is None:
        raise ValueError(
            f"kl_coef is {options.kl_coef} but ref_logp_T is None: pass the reference model's "
            "log-probs, or kl_coef=0"
        )
    if (reason := options.needs_sequences) and tokens.sequence_ids is None:
        raise ValueError(
            f"{reason} but sequence_ids_T is None: pass for each token the number of its sequence"
        )
