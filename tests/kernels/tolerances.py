"""How far a result may be off, and the rule that says so.

The truth is the float64 oracle on the same inputs. A result passes where it is at most as far
from the truth as plain PyTorch in the inputs' own dtype, plus a tolerance:

    |truth - ours| <= |truth - plain| + tolerance · scale

where the scale is max|truth|, or for a sum of terms of both signs the sum of their magnitudes.

Plain PyTorch sets the bar because its error depends on the inputs, which no constant can know. The
tolerance only covers what chance may add: plain PyTorch is sometimes exact on an entry.
"""

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
    # One more matmul on top, its entries sums of terms of both signs.
    ("hidden", torch.float32): 32 * FP32_ULP,
    ("weight", torch.float32): 32 * FP32_ULP,
    ("bias", torch.float32): 32 * FP32_ULP,
    # On the CPU logits are float32 from bfloat16 inputs, so what is returned in float32 is held to
    # float32's tolerance: only plain PyTorch rounds here.
    ("logp_T", torch.bfloat16): 8 * FP32_ULP,
    ("entropy_T", torch.bfloat16): 8 * FP32_ULP,
    ("kl_T", torch.bfloat16): 16 * FP32_ULP,
    ("loss", torch.bfloat16): 16 * FP32_ULP,
    # Gradients are rounded to bfloat16 once, as in plain PyTorch, so that rounding cancels from
    # the rule. The tolerance is too small for a second rounding to hide in.
    ("hidden", torch.bfloat16): BF16_ULP / 16,
    ("weight", torch.bfloat16): BF16_ULP / 16,
    ("bias", torch.bfloat16): BF16_ULP / 16,
    # Same precision as the truth: only the order of sums differs.
    ("logp_T", torch.float64): 1e-13,
    ("entropy_T", torch.float64): 1e-13,
    ("kl_T", torch.float64): 1e-13,
    ("loss", torch.float64): 1e-13,
    ("hidden", torch.float64): 1e-13,
    ("weight", torch.float64): 1e-13,
    ("bias", torch.float64): 1e-13,
}


def assert_no_worse(name, dtype, ours, truth, plain, scale=None):
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
