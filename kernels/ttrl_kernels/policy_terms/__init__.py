"""The policy's part of a token's loss, one file per equation; registered here by name.

A term gets the importance ratios r, the log-probs, the advantages A and the options of the loss,
and gives each token's term, to be minimized, and where a clip decided it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ttrl_kernels.policy_terms.cispo import cispo
from ttrl_kernels.policy_terms.ppo_clip import ppo_clip
from ttrl_kernels.policy_terms.sapo import sapo
from ttrl_kernels.policy_terms.unclipped import unclipped

if TYPE_CHECKING:
    from ttrl_kernels.loss_math import PolicyOptions

PolicyTerm = Callable[[Tensor, Tensor, Tensor, "PolicyOptions"], tuple[Tensor, Tensor]]
"""(ratio_L, logp_L, advantages_L, options) -> (term_L, clipped_L); differentiable in the first."""

POLICY_TERMS: dict[str, PolicyTerm] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "sapo": sapo,
    "none": unclipped,
}
