"""From a group's rewards to advantages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

AdvantageKind = Literal["mean_std", "mean", "rloo", "none"]


def group_advantages(rewards_G: Sequence[float], kind: AdvantageKind) -> tuple[float, ...]:
    """How much better each completion did than its group.

    - ``mean_std``: (r - mean) / (std + 1e-6), GRPO (arXiv 2402.03300). The standard
      deviation is the sample's, with G - 1 in the denominator: the papers leave it open, and the
      trainers whose learning rates the recipes take over compute that one.
    - ``mean``: r - mean, Dr. GRPO (arXiv 2503.20783): no question weighs more for being lopsided.

    Equal rewards give zeros, exactly, so that a group with nothing to learn can be recognised.

    Returns:
        One advantage per completion, without unit.
    """
    if len(set(rewards_G)) <= 1:
        return (0.0,) * len(rewards_G)
    mean = math.fsum(rewards_G) / len(rewards_G)
    scale = statistics.stdev(rewards_G) + 1e-6 if kind == "mean_std" else 1.0
    return tuple((reward - mean) / scale for reward in rewards_G)
