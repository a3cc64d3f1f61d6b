"""DeepConf's confidence of an answer, from that of its tokens (arXiv 2508.15260, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ttrl.selection.candidates import Floats
from ttrl.settings import SelectionSettings

LOWEST = 0.1
"""Share of the groups that "bottom" is the mean of."""


def groups(tokens: Sequence[float], window: int) -> Floats:
    """Compute the confidence of each group: the mean of ``window`` tokens in a row.

    The j-th group ends with token ``window + j``, counted from 1; an answer that is shorter than
    one is itself a group.
    """
    tokens_T = np.asarray(tokens, dtype=np.float64)
    width = min(window, len(tokens_T))
    sums_T = np.concatenate([[0.0], tokens_T.cumsum()])
    means: Floats = (sums_T[width:] - sums_T[:-width]) / width
    return means


def confidence(tokens: Sequence[float], settings: SelectionSettings) -> float:
    """Compute an answer's confidence as ``selection.confidence`` asks."""
    match settings.confidence:
        case "mean":
            return float(np.mean(tokens))
        case "tail":
            return float(np.mean(tokens[-settings.window :]))
        case "lowest":
            return float(groups(tokens, settings.window).min())
        case "bottom":
            sorted_J = np.sort(groups(tokens, settings.window))
            return float(sorted_J[: math.ceil(LOWEST * len(sorted_J))].mean())
