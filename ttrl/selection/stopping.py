"""What stopping early would have chosen and spent, replayed from whole answers.

A sample's tokens depend on its own random numbers alone, so the first tokens of an answer are what
a sampler that stops there would have sampled, and later answers are what it would have left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttrl.rollout.pool import ROUNDS
from ttrl.selection.candidates import NONE, Candidates, Floats, Ints
from ttrl.selection.confidence import groups
from ttrl.selection.rules import EPSILON
from ttrl.settings import SelectionSettings


@dataclass(frozen=True, slots=True)
class Stopped:
    """How one question ends whose sampling may stop early."""

    chosen: int
    """The class of the answer chosen; `NONE`: there is none."""
    answers: int
    """Answers that were begun."""
    tokens: float
    """Tokens that were sampled, those of answers that were broken off among them."""


class Watched:
    """The groups of one answer, as far as a sampler looks at them while it samples."""

    def __init__(self, tokens: Sequence[float], window: int) -> None:
        """Take the confidence of each token."""
        found = groups(tokens, window)
        self.lowest = float(found.min())
        """The lowest group."""
        self._length, self._window = len(tokens), window
        self._least_J = np.minimum.accumulate(found)

    def tokens_until(self, threshold: float) -> int:
        """Count the tokens up to the end of the first whole group below a threshold.

        An answer shorter than a group is seen when it ends.
        """
        if self._length <= self._window or self.lowest >= threshold:
            return self._length
        first = int(np.argmax(self._least_J < threshold))
        return self._window + first


def stopped_by_vote(candidates: Candidates, order_N: Ints) -> Stopped:
    """Stop once the majority is settled, as ``rollout.stop_when_decided`` does.

    The answers come in rounds, each a quarter of them. The one with the most votes is chosen as
    soon as it leads by more than there are answers to come; so it is the majority of all.
    """
    total = len(order_N)
    size = -(-total // ROUNDS)
    counts_C = np.zeros(len(candidates.right_C), dtype=np.int64)
    asked = 0
    while asked < total:
        for i in order_N[asked : asked + size]:
            if candidates.class_N[i] != NONE:
                counts_C[candidates.class_N[i]] += 1
        asked = min(total, asked + size)
        first, second = (*np.sort(counts_C)[::-1].tolist(), 0, 0)[:2]
        if first - second > total - asked:
            break
    chosen = int(counts_C.argmax()) if counts_C.any() else NONE
    return Stopped(chosen, asked, float(candidates.tokens_N[order_N[:asked]].sum()))


def stopped_by_confidence(
    candidates: Candidates,
    watched: Sequence[Watched],
    order_N: Ints,
    settings: SelectionSettings,
) -> Stopped:
    """Break off answers of low confidence, as DeepConf does online (arXiv 2508.15260, section 3.2).

    The first ``warm_up`` answers are sampled to their end. With s the percentile
    100·(1 - ``warm_up_keep``) of their lowest groups, a later answer is broken off at the first
    group below s. Answers whose lowest group is s or more vote, each with its confidence, those of
    the warm-up among them. No further answer is begun once ``consensus`` of the votes agree.

    Args:
        candidates: answers with the score "confidence".
        watched: their groups.
        order_N: which answer comes first, second ...
        settings: see there.
    """
    warm, later = order_N[: settings.warm_up], order_N[settings.warm_up :]
    lowest_W = [watched[i].lowest for i in warm]
    threshold = float(np.percentile(lowest_W, 100 * (1 - settings.warm_up_keep)))
    votes_C = np.zeros(len(candidates.right_C))
    answers, tokens = len(warm), float(candidates.tokens_N[warm].sum())
    for i in warm:
        _vote(candidates, watched, i, threshold, votes_C)
    for i in later:
        if _agree(votes_C, settings.consensus):
            break
        answers += 1
        tokens += watched[i].tokens_until(threshold)
        _vote(candidates, watched, i, threshold, votes_C)
    chosen = _first_of_most(votes_C)
    return Stopped(chosen, answers, tokens)


def _vote(
    candidates: Candidates, watched: Sequence[Watched], i: int, threshold: float, votes_C: Floats
) -> None:
    if watched[i].lowest >= threshold and candidates.class_N[i] != NONE:
        votes_C[candidates.class_N[i]] += candidates.scores_N["confidence"][i]


def _agree(votes_C: Floats, share: float) -> bool:
    total = float(votes_C.sum())
    return total > 0 and float(votes_C.max()) >= (share - EPSILON) * total


def _first_of_most(votes_C: Floats) -> int:
    most = float(votes_C.max(initial=0.0))
    return NONE if most == 0.0 else int((votes_C >= most * (1 - EPSILON)).argmax())
