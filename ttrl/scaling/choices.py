"""What choosing among n of N recorded answers scores, expected over which n are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from ttrl.answers import Grader
from ttrl.rewards.vote import majority_vote


def best_of(
    scores: Sequence[float], answers: Sequence[str | None], right: Sequence[bool], n: int
) -> float:
    """Compute the probability that the best-scored of n answers is right.

    Exact: with the N answers in the order of their scores, i answers before it, an answer is the
    best of n with probability C(N - 1 - i, n - 1) / C(N, n). An answer that cannot be read is never
    chosen while there is another; of equal scores, the earlier sample's is the better one.

    Raises:
        ValueError: unless 1 <= n <= N.
    """
    total = len(scores)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} of {total} answers: expected 1 <= n <= that number")
    order = sorted(range(total), key=lambda i: (answers[i] is None, -scores[i]))
    ways = sum(math.comb(total - 1 - i, n - 1) for i, place in enumerate(order) if right[place])
    return ways / math.comb(total, n)


def weighted_vote(
    scores: Sequence[float], answers: Sequence[str | None], grader: Grader
) -> str | None:
    """Elect the answer whose voters' scores sum to most; of equal ones, the one with more votes."""
    vote = majority_vote(answers, grader)
    weights = [0.0] * len(vote.counts)
    for cluster, score in zip(vote.clusters_G, scores, strict=True):
        if cluster is not None:
            weights[cluster] += score
    best = max(range(len(weights)), key=weights.__getitem__, default=None)
    if best is None:
        return None
    return next(
        answer for answer, c in zip(vote.answers_G, vote.clusters_G, strict=True) if c == best
    )


def weighted(
    scores: Sequence[float],
    answers: Sequence[str | None],
    reference: str,
    n: int,
    grader: Grader,
) -> float:
    """Compute how often n answers elect the reference, each weighing its score.

    Over the groups of n answers that follow each other; what is left of N is not used.

    Raises:
        ValueError: unless 1 <= n <= N.
    """
    if not 1 <= n <= len(scores):
        raise ValueError(f"{n} of {len(scores)} answers vote: expected 1 <= n <= that number")
    found = []
    for first in range(0, len(scores) - n + 1, n):
        part = slice(first, first + n)
        elected = weighted_vote(scores[part], answers[part], grader)
        found.append(elected is not None and grader.agree([elected], reference)[0])
    return fmean(found)
