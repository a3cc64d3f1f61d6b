"""The policy's part of a token's loss, one file per equation; registered here by name.

A term gets the importance ratios r, the log-probs, what else is known of the tokens (advantages A,
old log-probs, sequences) and the options of the loss, and gives each token's term, to be
minimized, and where a clip decided it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ttrl_kernels.policy_terms.cispo import cispo
from ttrl_kernels.policy_terms.dppo import dppo_kl, dppo_tv
from ttrl_kernels.policy_terms.gmpo import gmpo
from ttrl_kernels.policy_terms.ppo_clip import ppo_clip
from ttrl_kernels.policy_terms.sapo import sapo
from ttrl_kernels.policy_terms.unclipped import unclipped

if TYPE_CHECKING:
    from ttrl_kernels.policy_options import PolicyOptions
    from ttrl_kernels.token_data import TokenData

PolicyTerm = Callable[[Tensor, Tensor, "TokenData", "PolicyOptions"], tuple[Tensor, Tensor]]
"""(ratio_L, logp_L, tokens_L, options) -> (term_L, clipped_L); differentiable in the first two."""

POLICY_TERMS: dict[str, PolicyTerm] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "none": unclipped,
}

OF_SEQUENCES = ("gmpo",)
"""Terms of whole sequences: a token's gradient depends on the log-probs of the others."""
