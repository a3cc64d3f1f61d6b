"""Which tokens have a policy term: those at which the policy is undecided.

Few tokens of an answer are decisions; the others follow from what is there (2506.01939), and to
train on the former alone is also a way to keep a majority vote from closing in on one answer
(SPINE, 2511.17938).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def undecided(entropies: Sequence[NDArray[np.float64]], share: float) -> list[NDArray[np.bool_]]:
    """Say which tokens of each sequence are among the ``share`` of the highest entropy of all.

    They are those at or above the quantile 1 - share, which is interpolated linearly.
    """
    bound = np.quantile(np.concatenate(entropies), 1 - share)
    return [h >= bound for h in entropies]
