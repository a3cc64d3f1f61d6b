"""What choosing among n of N recorded answers scores, expected over which n are drawn.

The rules are those of ``ttrl eval --select``, ties included (`ttrl.selection.rules`).
"""

from __future__ import annotations

import math

import numpy as np

from ttrl.selection.candidates import Candidates
from ttrl.selection.rules import RULES, preferred
from ttrl.settings import SelectionSettings

REWARD = "reward"
"""The score that both rules read."""


def best_of(candidates: Candidates, n: int) -> float:
    """Compute the probability that best-of-n chooses what is right.

    Exact: with the N answers in the order in which the rule prefers them, i answers before it, an
    answer is the best of n with probability C(N - 1 - i, n - 1) / C(N, n).

    Raises:
        ValueError: unless 1 <= n <= N.
    """
    total = len(candidates)
    _refuse_more(n, total)
    order_N = preferred(candidates.class_N, candidates.scores_N[REWARD])
    right_N = candidates.right(candidates.class_N[order_N]).tolist()
    ways = sum(math.comb(total - 1 - i, n - 1) for i, right in enumerate(right_N) if right)
    return ways / math.comb(total, n)


def weighted(candidates: Candidates, n: int, settings: SelectionSettings) -> float:
    """Compute how often n answers elect what is right, each weighing its score.

    Over the groups of n answers that follow each other; what is left of N is not used.

    Raises:
        ValueError: unless 1 <= n <= N.
    """
    total = len(candidates)
    _refuse_more(n, total)
    choose = RULES["weighted"].choose
    assert choose is not None
    used, shape = total - total % n, (total // n, n)
    class_RN = candidates.class_N[:used].reshape(shape)
    scores_RN = candidates.scores_N[REWARD][:used].reshape(shape)
    return float(np.mean(candidates.right(choose(class_RN, scores_RN, settings))))


def _refuse_more(n: int, total: int) -> None:
    if not 1 <= n <= total:
        raise ValueError(f"{n} of {total} answers: expected 1 <= n <= that number")
