"""The answers to one question that a rule chooses among, as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ttrl.answers import Extractor, Grader, tie_order
from ttrl.report.rollouts import RecordedGroup
from ttrl.rewards.vote import majority_vote
from ttrl.types import Vote

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NONE = -1
"""The class of an answer from which nothing could be read, and the choice where there is none."""


@dataclass(frozen=True)
class Candidates:
    """N answers to a question: which are the same, how long each is, how good it seems.

    Example: the answers 7, 8, none and 7.0 have ``class_N = [0, 1, -1, 0]``, if ``tie_order`` puts
    7 before 8.
    """

    question: str
    """Its id."""
    vote: Vote
    """The vote of all of them."""
    class_N: Ints
    """The class of each answer: those that are the same. Classes are numbered by `tie_order`, so
    that the first of several is the one that a tied majority vote elects. `NONE`: no answer."""
    tokens_N: Floats
    """The length of each answer."""
    right_C: Floats
    """1 for the class that is right."""
    scores_N: Mapping[str, Floats] = field(default_factory=dict)
    """What speaks for each answer, by the name of the score."""

    @classmethod
    def of(
        cls, group: RecordedGroup, reference: str, extract: Extractor, grader: Grader
    ) -> Candidates:
        """Read and sort the answers of a group."""
        vote = majority_vote([extract(a.text) for a in group.answers], grader)
        order = sorted(range(len(vote.names)), key=lambda c: tie_order(vote.names[c]))
        place = {old: new for new, old in enumerate(order)}
        right_C = np.zeros(len(order))
        agree = grader.agree(vote.answers_G, reference)
        for cluster, right in zip(vote.clusters_G, agree, strict=True):
            if right and cluster is not None:
                right_C[place[cluster]] = 1.0
        return cls(
            question=group.question,
            vote=vote,
            class_N=np.array([NONE if c is None else place[c] for c in vote.clusters_G]),
            tokens_N=np.array([float(a.tokens) for a in group.answers]),
            right_C=right_C,
        )

    def __len__(self) -> int:
        """Count the answers."""
        return len(self.class_N)

    def scored(self, name: str, scores: Floats) -> Candidates:
        """Return the candidates with a further score.

        Raises:
            ValueError: unless there is a finite number for each answer.
        """
        if len(scores) != len(self) or not all(map(math.isfinite, scores)):
            raise ValueError(f"{name}: expected {len(self)} finite numbers, one for each answer")
        return replace(self, scores_N={**self.scores_N, name: scores})

    def right(self, chosen_R: Ints) -> Floats:
        """Return 1 for each choice that is right, 0 for others, and where nothing was chosen."""
        return np.append(self.right_C, 0.0)[chosen_R]
