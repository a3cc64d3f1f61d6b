"""What a question earns its proposer, by how the solver's answers agree."""

from __future__ import annotations

from collections.abc import Callable


def absolute_zero(share: float) -> float:
    """1 - share, but 0 for what nobody solves: Absolute Zero (arXiv 2505.03335)."""
    return 1 - share if share > 0 else 0.0


def r_zero(share: float) -> float:
    """Most where half of the answers agree: R-Zero (arXiv 2508.05004)."""
    return min(share, 1 - share)


def sqlm(share: float) -> float:
    """1 if some answers agree and some do not: SQLM (arXiv 2508.03682)."""
    return float(0 < share < 1)


LEARNABILITY: dict[str, Callable[[float], float]] = {
    "absolute_zero": absolute_zero,
    "r_zero": r_zero,
    "sqlm": sqlm,
}
"""Rewards by their name in ``posed.reward``."""
