"""From a group's rewards to advantages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

AdvantageKind = Literal["mean_std", "mean", "rloo", "none"]


def group_advantages(rewards_G: Sequence[float], kind: AdvantageKind) -> tuple[float, ...]:
    """Compute how much better each completion did than its group.

    - ``mean_std``: (r - mean) / (std + 1e-6), GRPO (arXiv 2402.03300). The standard
      deviation is the sample's, with G - 1 in the denominator: the papers leave it open, and the
      trainers whose learning rates the recipes take over compute that one.
    - ``mean``: r - mean, Dr. GRPO (arXiv 2503.20783): no question weighs more for being lopsided.
    - ``rloo``: r - mean of the others, RLOO (arXiv 2402.14740): a baseline that a completion has
      no part in. It is G / (G - 1) times ``mean``.
    - ``none``: r itself, compared with nothing.

    Equal rewards give zeros, exactly, so that a group with nothing to learn can be recognised;
    except with ``none``, where they can teach something.

    Returns:
        One advantage per completion, without unit.
    """
    if kind == "none":
        return tuple(rewards_G)
    if len(set(rewards_G)) <= 1:  # also a group of one, which has no others
        return (0.0,) * len(rewards_G)
    size = len(rewards_G)
    mean = math.fsum(rewards_G) / size
    scale = {
        "mean_std": statistics.stdev(rewards_G) + 1e-6,
        "mean": 1.0,
        "rloo": (size - 1) / size,
    }[kind]
    return tuple((reward - mean) / scale for reward in rewards_G)
