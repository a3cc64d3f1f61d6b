"""Estimators of the KL divergence from the reference, from the sampled token alone."""

from __future__ import annotations

from torch import Tensor

from ttrl_kernels.ratios import clamp_log_ratio

STRAIGHT_THROUGH = "+"
KL_ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str) -> Tensor:
    """Estimate KL(policy ‖ reference) per token.

    k1 = logp − ref,  abs = |k1|,  k2 = ½·k1²,  k3 = exp(d) − d − 1 with d = clamp(−k1, ±20)
    k1+, k3+, abs+: the value of the one without a +, and the gradient of k2

    Averaged over tokens of the policy, the gradient of k2 is that of the KL divergence; those of
    k1 (which is 0 in the mean), k3 and abs are not, though the values of k1 and k3 are its own
    (Schulman, "Approximating KL divergence", 2020; 2506.09477).

    k3 clamps d in all its places: with only the exp clamped, the part that is left beyond the
    limit would push the policy away from the reference.

    Args:
        logp: the policy's log-probs [T] of the sampled tokens, in nats.
        ref_logp: the reference's.
        kind: one of `KL_ESTIMATORS`.

    Returns:
        One estimate per token [T], in nats.
    """
    if kind.endswith(STRAIGHT_THROUGH):
        value = kl_estimate(logp.detach(), ref_logp, kind.removesuffix(STRAIGHT_THROUGH))
        slope = kl_estimate(logp, ref_logp, "k2")
        return value + (slope - slope.detach())
    k1 = logp - ref_logp
    if kind == "k1":
        return k1
    if kind == "abs":
        return k1.abs()
    if kind == "k2":
        return 0.5 * k1.square()
    d = clamp_log_ratio(-k1)
    return d.expm1() - d
