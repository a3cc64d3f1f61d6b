"""Which tokens are held back because their log-prob and advantage rise together (2505.22617).

The entropy of a policy falls with the covariance of its log-probs and advantages, to which few
tokens give most: a token's share of it is

    c = (A - mean A) (logp - mean logp)

with means over the trained tokens of an optimizer step, and log-probs of the policy before a
rollout's first update. The paper computes them anew in every micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ttrl.system.rng import generator

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def covariances(advantages: Sequence[Values], logprobs: Sequence[Values]) -> list[Values]:
    """Compute c of each token of each sequence."""
    advantage, logp = np.concatenate(advantages).mean(), np.concatenate(logprobs).mean()
    return [(a - advantage) * (x - logp) for a, x in zip(advantages, logprobs, strict=True)]


def count(share: float, tokens: int) -> int:
    """Return how many of so many tokens are held back: a share, but at least one."""
    return max(1, int(share * tokens))


def between(
    covariances: Sequence[Values],
    clipped: Sequence[Flags],
    bounds: tuple[float, float],
    share: float,
    stream: Sequence[int | str],
) -> list[Flags]:
    """Choose, at random, tokens with a covariance within bounds that PPO does not clip (Clip-Cov).

    Args:
        covariances: c of the tokens of each sequence.
        clipped: whether PPO's clip decides their policy term already.
        bounds: excluded themselves.
        share: of all tokens, how many are chosen; fewer where fewer are within the bounds.
        stream: of random numbers, see `ttrl.system.rng`.
    """
    every, out = np.concatenate(covariances), np.concatenate(clipped)
    (eligible,) = np.nonzero((every > bounds[0]) & (every < bounds[1]) & ~out)
    size = min(count(share, len(every)), len(eligible))
    chosen = generator(*stream).choice(eligible, size, replace=False, shuffle=False)
    return _flags(chosen, covariances)


def highest(covariances: Sequence[Values], share: float) -> list[Flags]:
    """Choose the ``share`` of tokens with the most covariance, the first of equal ones (KL-Cov)."""
    every = np.concatenate(covariances)
    return _flags(np.argsort(-every, kind="stable")[: count(share, len(every))], covariances)


def _flags(chosen: NDArray[np.intp], like: Sequence[Values]) -> list[Flags]:
    """Turn positions among all tokens into a flag per token of each sequence."""
    flags = np.zeros(sum(map(len, like)), bool)
    flags[chosen] = True
    return np.split(flags, np.cumsum([len(x) for x in like])[:-1])
