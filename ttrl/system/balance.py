"""Dealing out work so that everybody gets about as much."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balance(sizes: Sequence[float], parts: int) -> list[list[int]]:
    """Deal items over ``parts``: the largest first, each to the least loaded.

    Args:
        sizes: of the items, in any unit.
        parts: how many lists to make.

    Returns:
        Per part, the indices of its items, the largest first: what starts last should be short.
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]  # a heap
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + sizes[i], part))
        dealt[part].append(i)
    return dealt
