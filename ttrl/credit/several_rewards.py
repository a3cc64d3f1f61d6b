"""One advantage from several rewards: the estimator's, and those of ``reward.extra``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ttrl.settings import RewardSettings
from ttrl.types import Estimate

Compare = Callable[[Sequence[float]], Sequence[float]]
"""Function from a group's rewards to its advantages."""


def total_rewards(estimate: Estimate, reward: RewardSettings) -> tuple[float, ...]:
    """Compute r + Σ_k w_k r_k of each completion; the estimator's own reward has the weight 1."""
    return _weighted([estimate.worth_G, *estimate.extra_rewards.values()], estimate, reward)


def several_advantages(
    estimate: Estimate, reward: RewardSettings, compare: Compare
) -> tuple[float, ...]:
    """Compute a group's advantages, by ``reward.extra_aggregation``.

    - ``sum_then_normalize``: A(r + Σ_k w_k r_k), with ``compare`` as A.
    - ``normalize_then_sum``: A(r) + Σ_k w_k A(r_k), GDPO (arXiv 2601.05242): each reward keeps its
      say, however small its differences are. The step is then to be whitened.
    """
    if reward.extra_aggregation == "sum_then_normalize":
        return tuple(compare(total_rewards(estimate, reward)))
    rewards = [estimate.worth_G, *estimate.extra_rewards.values()]
    return _weighted([compare(rewards_G) for rewards_G in rewards], estimate, reward)


def _weighted(
    columns: Sequence[Sequence[float]], estimate: Estimate, reward: RewardSettings
) -> tuple[float, ...]:
    weights = [1.0, *(reward.extra[name] for name in estimate.extra_rewards)]
    return tuple(
        math.fsum(w * x for w, x in zip(weights, row, strict=True))
        for row in zip(*columns, strict=True)
    )
