"""Log-probs and policy losses of a linear language-model head that never hold all its logits.

    z = softcap(W x_t + b) / τ      logp_t = z_y − lse(z)      H_t = −Σ_v p_v log p_v

Shapes by suffix: ``_T`` packed tokens (padding and prompts may be among them), ``_H`` hidden
size, ``_V`` vocabulary. Log-probs and entropies are in nats. All inputs live on one device, and
``hidden``, ``weight`` and ``bias`` share a dtype: float32, bfloat16 or float64. Results are
float32, or float64 for float64 inputs.
"""

from ttrl_kernels.head import FusedLMHead
from ttrl_kernels.linear import LogProbs, linear_logprob, linear_policy_loss
from ttrl_kernels.loss_math import PolicyLoss
from ttrl_kernels.rows import backends, chosen_backend

__all__ = [
    "FusedLMHead",
    "LogProbs",
    "PolicyLoss",
    "backends",
    "chosen_backend",
    "linear_logprob",
    "linear_policy_loss",
]
