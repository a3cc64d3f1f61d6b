"""Watches the confidence of answers while they are sampled, for engines that break them off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ttrl.report.confidence import token_confidences
from ttrl.rollout.sampling import ConfidenceFloor


class Watch:
    """The last groups of R answers; computed as from whole ones (`ttrl.selection.confidence`)."""

    def __init__(self, floor: ConfidenceFloor, questions: Sequence[str], longest: int) -> None:
        """Begin with R answers without a token.

        Args:
            floor: the least confidence.
            questions: whom each answer is to, by id.
            longest: tokens that an answer has at most.
        """
        self._window = floor.window
        self._least_R = np.array([floor.least[id] for id in questions])
        self.length_R = np.zeros(len(questions), dtype=np.int64)
        """Tokens of each answer so far."""
        # The sum of all tokens up to each of the last places, so that a group's is a difference.
        places = floor.window + 1 if floor.window <= longest else 1
        self._sums_RP = np.zeros((len(questions), places))

    def below(
        self, row_L: NDArray[np.int64], logprobs_LK: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Take a further token of L answers; say which have a group below the least with it.

        Args:
            row_L: the answers, each once.
            logprobs_LK: of the likeliest tokens in its place.
        """
        self.length_R[row_L] += 1
        places = self._sums_RP.shape[1]
        if places == 1:  # no answer is as long as a group
            return np.zeros(len(row_L), dtype=np.bool_)
        length_L = self.length_R[row_L]
        sum_L = self._sums_RP[row_L, (length_L - 1) % places] + token_confidences(logprobs_LK)
        self._sums_RP[row_L, length_L % places] = sum_L
        before_L = self._sums_RP[row_L, (length_L - self._window) % places]
        low_L = (sum_L - before_L) / self._window < self._least_R[row_L]
        return np.asarray((length_L >= self._window) & low_L)
