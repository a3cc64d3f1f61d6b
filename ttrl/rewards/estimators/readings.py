"""Readings of a group that has voted, which several estimators use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ttrl.rewards.vote import most_common
from ttrl.types import Completion, Vote


def surprisal(completion: Completion) -> float:
    """Compute the mean negative log-probability of a completion's tokens, in nats.

    Its expectation is the mean entropy of the next-token distributions, which the papers use and
    which a rollout engine does not report.
    """
    logprobs = completion.logprobs
    return -math.fsum(logprobs) / len(logprobs) if logprobs else 0.0


def class_means(vote: Vote, values_G: Sequence[float]) -> list[float]:
    """Compute for each equivalence class of a vote the mean of its voters' values."""
    members: list[list[float]] = [[] for _ in vote.counts]
    for cluster, value in zip(vote.cast_G, values_G, strict=True):
        if cluster is not None:
            members[cluster].append(value)
    return [math.fsum(values) / len(values) for values in members]


def spelling(vote: Vote, cluster: int) -> str:
    """Return a class's most common answer, as `Vote.majority` is that of the largest class."""
    votes = zip(vote.answers_G, vote.cast_G, strict=True)
    spellings = Counter(answer for answer, c in votes if answer is not None and c == cluster)
    return most_common(spellings)
