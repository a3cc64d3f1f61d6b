"""Reads how often a stream's questions were answered right, each before it was learned from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ttrl.report.run_record import RunRecord


class Shares(NamedTuple):
    """Shares of right answers: over all of a stream's questions, and over their last third."""

    whole: float
    last_third: float


class Change(NamedTuple):
    """A difference of two shares of right answers, with its 95 % interval."""

    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StreamScores:
    """What the answers to a stream's questions were worth, as far as its rows said what is right.

    Example: ``StreamScores(300, Shares(0.713, 0.794), Shares(0.953, 0.962))``.
    """

    scored: int
    """Questions whose rows have an answer."""
    first: Shares
    """Of the first samples: pass@1."""
    majority: Shares
    """Of the votes."""
    adapted: float | None = None
    """Of the first samples after training on the question itself, over all questions; None: there
    are none, since what was learned stayed."""

    @property
    def change(self) -> Change | None:
        """How the first samples have changed by what was learned.

        From the first two thirds of the questions to the last; where each question was trained on
        and forgotten, from before that to after it. None: there are too few to say.
        """
        last = math.ceil(self.scored / 3)
        if self.adapted is not None:
            return change(self.first.whole, self.scored, self.adapted, self.scored)
        if (others := self.scored - last) < 1:
            return None
        right = self.first.whole * self.scored - self.first.last_third * last
        return change(right / others, others, self.first.last_third, last)


def stream_scores(run: RunRecord) -> StreamScores | None:
    """Read the newest figures of a run's stream; None: it has none, or nothing was scored."""
    lines = (step for step in reversed(run.steps) if "stream/scored" in step)
    if (line := next(lines, None)) is None:
        return None
    first, majority = (
        Shares(line[f"stream/{kind}_accuracy_mean"], line[f"stream/{kind}_accuracy_last_third"])
        for kind in ("first", "majority")
    )
    adapted = run.curve("stream/adapted_first_accuracy_mean")
    return StreamScores(int(line["stream/scored"]), first, majority, *[y for _, y in adapted[-1:]])


def change(before: float, count: int, after: float, count_after: int) -> Change:
    """Compare two shares, each of so many questions.

    The interval is that of Agresti and Caffo (2000), which holds for few questions, too: it counts
    a right and a wrong answer more in each share.
    """
    shares = [
        ((share * n + 1) / (n + 2), n + 2) for share, n in ((before, count), (after, count_after))
    ]
    middle = shares[1][0] - shares[0][0]
    half = 1.96 * math.sqrt(math.fsum(share * (1 - share) / n for share, n in shares))
    return Change(before, after, middle - half, middle + half)
