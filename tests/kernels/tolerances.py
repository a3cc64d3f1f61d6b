"""How far a result may be off, and the rule that says so.

The truth is the float64 oracle on the same inputs. A result passes where it is at most as far
from the truth as plain PyTorch in the inputs' own dtype, plus a tolerance:

    |truth - ours| <= |truth - plain| + tolerance · scale

where the scale is max|truth|, or for a sum of terms of both signs the sum of their magnitudes.

Plain PyTorch sets the bar because its error depends on the inputs, which no constant can know. The
tolerance only covers what chance may add: plain PyTorch is sometimes exact on an entry.
"""

from __future__ import annotations

import torch

FP32_ULP = 2.0**-23
BF16_ULP = 2.0**-8

TOLERANCES = {
    # Summation order in the matmul and in the sum over the vocabulary: a few units in the last
    # place of the largest logit, which is what logp and entropy are differences of.
    ("logp_T", torch.float32): 8 * FP32_ULP,
    ("entropy_T", torch.float32): 8 * FP32_ULP,
    # An error of the log-prob becomes a relative one in the KL's exp and the loss's ratio.
    ("kl_T", torch.float32): 16 * FP32_ULP,
    ("loss", torch.float32): 16 * FP32_ULP,
    # A row's gradient: an error of lse is a relative one of every probability.
    ("dlogits", torch.float32): 8 * FP32_ULP,
    # One more matmul on top, its entries sums of terms of both signs.
    ("hidden", torch.float32): 32 * FP32_ULP,
    ("weight", torch.float32): 32 * FP32_ULP,
    ("bias", torch.float32): 32 * FP32_ULP,
    # Logits are rounded to bfloat16 as in plain PyTorch (on the CPU) or not at all (on a GPU). A
    # matmul over fewer rows may sum in another order, and a logit on the border between two
    # bfloat16 numbers then falls to the other side: one step of the largest logit.
    ("logp_T", torch.bfloat16): BF16_ULP,
    ("entropy_T", torch.bfloat16): BF16_ULP,
    ("kl_T", torch.bfloat16): 2 * BF16_ULP,
    ("loss", torch.bfloat16): 2 * BF16_ULP,
    # The gradients of the logits are rounded before the matmuls and the results after, as in plain
    # PyTorch, but by other amounts where a chunk or an incoming gradient other than 1 is in
    # between. Single entries may be unlucky; the rule on the mean below may not.
    ("hidden", torch.bfloat16): 2 * BF16_ULP,
    ("weight", torch.bfloat16): 2 * BF16_ULP,
    ("bias", torch.bfloat16): 2 * BF16_ULP,
    # Same precision as the truth: only the order of sums differs.
    ("logp_T", torch.float64): 1e-13,
    ("entropy_T", torch.float64): 1e-13,
    ("kl_T", torch.float64): 1e-13,
    ("loss", torch.float64): 1e-13,
    ("hidden", torch.float64): 1e-13,
    ("weight", torch.float64): 1e-13,
    ("bias", torch.float64): 1e-13,
}


def error_ratio(ours: torch.Tensor, truth: torch.Tensor, plain: torch.Tensor) -> float:
    """Root mean square error of ours by that of plain PyTorch."""
    ours, plain = ((x.double() - truth).square().mean().sqrt() for x in (ours, plain))
    return (ours / plain).item()


def assert_no_worse(
    name: str,
    dtype: torch.dtype,
    ours: torch.Tensor,
    truth: torch.Tensor,
    plain: torch.Tensor,
    scale: float | torch.Tensor | None = None,
) -> None:
    """The rule above for one output or gradient, with the worst entry in the message."""
    ours, plain = ours.double(), plain.double()
    assert ours.shape == truth.shape
    if truth.numel() == 0:
        return
    scale = truth.abs().max() if scale is None else scale
    allowed = (truth - plain).abs() + TOLERANCES[name, dtype] * scale
    excess = (truth - ours).abs() - allowed
    worst = int(excess.argmax())
    # Negated so that a NaN anywhere fails.
    assert not bool((~(excess <= 0)).any()), (
        f"{name} [{dtype}] entry {worst}: ours {ours.flatten()[worst]}, "
        f"truth {truth.flatten()[worst]}, plain torch {plain.flatten()[worst]}, "
        f"allowed {allowed.flatten()[worst]:.3g}"
    )
