"""Curves in a terminal, a line of text each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as bars from their least to their largest, at most ``width`` characters.

    Of more values than that, each bar is the mean of a part of them.
    """
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    parts = [fmean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(parts, default=0.0), max(parts, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((part - low) * scale)] for part in parts)


def curve_line(name: str, points: Sequence[tuple[int, float]], width: int = 80) -> str:
    """Return a line with a metric's name, its curve, and its first and last value."""
    values = [value for _, value in points]
    ends = f"{values[0]:.4g} → {values[-1]:.4g}"
    room = width - 28 - 2 - len(ends) - 1
    return f"{name:<28}  {sparkline(values, room)} {ends}"
