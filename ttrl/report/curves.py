"""Curves in a terminal, a line of text each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TypeVar

Value = TypeVar("Value")

BARS = "▁▂▃▄▅▆▇█"


def parts(values: Sequence[Value], count: int) -> list[Sequence[Value]]:
    """Cut values into ``count`` parts that follow each other, as equal in length as can be.

    Example: ``parts([1, 2, 3, 4, 5], 2)`` -> ``[[1, 2], [3, 4, 5]]``.
    """
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [values[a:b] for a, b in pairwise(edges)]


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as bars from their least to their largest, at most ``width`` characters.

    Of more values than that, each bar is the mean of a part of them.
    """
    count = min(width, len(values))
    means = [fmean(part) for part in parts(values, count)] if count else []
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def curve_line(name: str, points: Sequence[tuple[int, float]], width: int = 80) -> str:
    """Return a line with a metric's name, its curve, and its first and last value."""
    values = [value for _, value in points]
    ends = f"{values[0]:.4g} → {values[-1]:.4g}"
    room = width - 28 - 2 - len(ends) - 1
    return f"{name:<28}  {sparkline(values, room)} {ends}"
