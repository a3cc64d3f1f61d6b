"""When sampling stops early, by votes or confidence, and what whole answers say it would have done.

A sample's tokens depend on its own random numbers alone, so the first tokens of an answer are what
a sampler that stops there samples (`ttrl.selection.online`), and later answers are what it leaves
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ttrl.rewards.vote import is_settled
from ttrl.rollout.pool import ROUNDS
from ttrl.selection.candidates import NONE, Candidates, Ints
from ttrl.selection.confidence import groups
from ttrl.selection.rules import EPSILON
from ttrl.settings import SelectionSettings

Choice = TypeVar("Choice", int, str)
"""What is voted for: a class of answers, by its number or its name."""
SAME = 5e-4
"""Confidences that differ by less are the same. Equal answers have equal ones, and the threshold is
often theirs; but a token's is rounded, and in another batch its last digit may be another."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """How one question ends whose sampling may stop early."""

    chosen: int
    """The class of the answer chosen; `NONE`: there is none."""
    answers: int
    """Answers that were begun."""
    tokens: float
    """Tokens that were sampled, those of answers that were broken off among them."""


class GroupConfidences:
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
        if is_settled(counts_C.tolist(), total - asked):
            break
    chosen = int(counts_C.argmax()) if counts_C.any() else NONE
    return Stopped(chosen, asked, float(candidates.tokens_N[order_N[:asked]].sum()))


class ConfidentVotes(Generic[Choice]):
    """The votes for answers whose lowest group is not below a threshold, each with its confidence.

    The threshold is the percentile 100·(1 - ``warm_up_keep``) of the lowest groups of the answers
    of the warm-up, which vote by the same rule. The votes agree if one answer has ``consensus`` of
    them.
    """

    def __init__(self, lowest_W: Sequence[float], settings: SelectionSettings) -> None:
        """Take the lowest groups of the warm-up, whose answers have not voted yet."""
        self._share = settings.consensus
        self.least = float(np.percentile(lowest_W, 100 * (1 - settings.warm_up_keep))) - SAME
        """What the groups of an answer have to reach."""
        self._votes: dict[Choice, float] = {}

    def count(self, choice: Choice, lowest: float, confidence: float) -> None:
        """Let an answer vote for what it has chosen, if it may."""
        if lowest >= self.least:
            self._votes[choice] = self._votes.get(choice, 0.0) + confidence

    @property
    def agree(self) -> bool:
        """Whether no further answer is needed."""
        total = sum(self._votes.values())
        return total > 0 and max(self._votes.values()) >= (self._share - EPSILON) * total

    @property
    def leading(self) -> list[Choice]:
        """What has most votes: several where they are equal, none where nobody has voted."""
        most = max(self._votes.values(), default=0.0)
        return [c for c, votes in self._votes.items() if most > 0 and votes >= most * (1 - EPSILON)]


def stopped_by_confidence(
    candidates: Candidates,
    watched: Sequence[GroupConfidences],
    order_N: Ints,
    settings: SelectionSettings,
) -> Stopped:
    """Break off answers of low confidence, as DeepConf does online (arXiv 2508.15260, section 3.2).

    The first ``warm_up`` answers are sampled to their end, and set the threshold. A later one is
    broken off at the first group below it. No further answers are begun once the votes agree, which
    is looked at when ``at_once`` have ended. See `ConfidentVotes`.

    Args:
        candidates: answers with the score "confidence".
        watched: their groups.
        order_N: which answer comes first, second ...
        settings: see there.
    """
    warm, later = order_N[: settings.warm_up], order_N[settings.warm_up :]
    votes: ConfidentVotes[int] = ConfidentVotes([watched[i].lowest for i in warm], settings)
    count_votes(votes, candidates, watched, warm)
    answers, tokens = len(warm), float(candidates.tokens_N[warm].sum())
    for first in range(0, len(later), settings.at_once):
        if votes.agree:
            break
        begun = later[first : first + settings.at_once]
        answers += len(begun)
        tokens += sum(watched[i].tokens_until(votes.least) for i in begun)
        count_votes(votes, candidates, watched, begun)
    return Stopped(min(votes.leading, default=NONE), answers, tokens)


def count_votes(
    votes: ConfidentVotes[int],
    candidates: Candidates,
    watched: Sequence[GroupConfidences],
    answers: Ints,
) -> None:
    """Let these answers vote for their classes; one without an answer has no vote."""
    for i in answers:
        if (place := int(candidates.class_N[i])) != NONE:
            confidence = float(candidates.scores_N["confidence"][i])
            votes.count(place, watched[i].lowest, confidence)
