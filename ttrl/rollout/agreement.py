"""Telling an engine that rounds from one that computes another model, by log-probs of samples.

Errors in a token's logits reach its log-prob at temperature T divided by T, and all the less the
surer the model is of the token: with independent errors e of spread s, and probabilities p,

    Δ = (e_i - Σ_j p_j·e_j) / T,   variance between 1 and 2 times  s²·(1 - p_i)² / T²

So log-probs alone show s, whatever the temperature and the model's certainty:

    s = T·√( Σ Δ² / Σ (1 - p)² )

Rounding in bfloat16 makes s about 0.1. Of an engine in which one matrix, one norm or the rotary
positions are another model's, it is several times as large; the mean of |Δ| does not tell the two
apart (docs/models.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

LIMIT = {"float32": 1e-3, "bfloat16": 0.25}
"""The largest s that is still rounding, in nats, by the type of the engine's weights."""

SURE = 0.01
"""The least 1 - p: the log-prob of a token that is all but certain has rounding of its own."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine is from the policy over some sampled tokens, in nats."""

    tokens: int
    mean: float
    """Mean |Δ| of a token's log-prob."""
    largest: float
    """Largest |Δ|."""
    logits: float
    """s: the spread of the differences between their logits."""

    def holds(self, dtype: str) -> bool:
        """Say whether rounding in ``dtype`` can explain the differences."""
        return self.logits <= LIMIT[dtype]  # NaN is no agreement


def compare(engine: Sequence[float], policy: Sequence[float], temperature: float) -> Agreement:
    """Measure how far two models' log-probs of the same sampled tokens are apart.

    Args:
        engine: of each token, by the engine that sampled it, at ``temperature``.
        policy: of the same tokens, by the policy, at ``temperature``.
        temperature: above 0.
    """
    gaps = [ours - theirs for ours, theirs in zip(engine, policy, strict=True)]
    unsure = [max(-math.expm1(min(logprob, 0.0)), SURE) for logprob in policy]
    spread = math.sqrt(sum(gap**2 for gap in gaps) / sum(share**2 for share in unsure))
    return Agreement(len(gaps), fmean(map(abs, gaps)), max(map(abs, gaps)), temperature * spread)
