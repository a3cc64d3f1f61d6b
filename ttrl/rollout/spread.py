"""Which engine samples which questions."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def spread(expected: Sequence[float], parts: int) -> list[list[int]]:
    """Deal questions over ``parts`` engines: the longest first, each to the least loaded.

    Args:
        expected: per question, its expected length; any unit.
        parts: how many engines there are.

    Returns:
        Per engine, indices of its questions, the longest first: what starts last should be short.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]  # a heap
    for i in sorted(range(len(expected)), key=lambda i: -expected[i]):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + expected[i], part))
        shares[part].append(i)
    return shares
