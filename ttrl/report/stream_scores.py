"""Reads how often a stream's questions were answered right, each before it was learned from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ttrl.report.run_record import RunRecord
from ttrl.types import UserError

NAMES = (
    "stream/scored",
    "stream/first_accuracy_mean",
    "stream/first_accuracy_last_third",
    "stream/majority_accuracy_mean",
    "stream/majority_accuracy_last_third",
)
"""What a line of metrics says of a stream's scores, in the order of `StreamScores`."""


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
    def before(self) -> float | None:
        """The first samples' share of right answers before the last third; None: none came."""
        last = math.ceil(self.scored / 3)
        if (others := self.scored - last) < 1:
            return None
        # Numbers of right answers: what a division has rounded is whole again.
        right = round(self.first.whole * self.scored) - round(self.first.last_third * last)
        return right / others

    @property
    def change(self) -> Change | None:
        """How the first samples have changed by what was learned.

        From the first two thirds of the questions to the last; where each question was trained on
        and forgotten, from before that to after it. None: there are too few to say.
        """
        if self.adapted is not None:
            return change(self.first.whole, self.scored, self.adapted, self.scored)
        if (before := self.before) is None:
            return None
        last = math.ceil(self.scored / 3)
        return change(before, self.scored - last, self.first.last_third, last)


def stream_scores(run: RunRecord) -> StreamScores | None:
    """Read the newest figures of a run's stream; None: it has none, or nothing was scored.

    Raises:
        UserError: if they are no shares of right answers: somebody has changed them.
    """
    # A further visit of a question says how many were scored, and no more.
    lines = (step for step in reversed(run.steps) if all(name in step for name in NAMES))
    if (line := next(lines, None)) is None:
        return None
    scored, *shares = (line[name] for name in NAMES)
    adapted = [share for _, share in run.curve("stream/adapted_first_accuracy_mean")[-1:]]
    found = StreamScores(int(scored), Shares(*shares[:2]), Shares(*shares[2:]), *adapted)
    first_part = [] if (before := found.before) is None else [before]
    if scored < 1 or not all(0 <= share <= 1 for share in (*shares, *adapted, *first_part)):
        raise UserError(
            f"cannot read {run.path / 'metrics.jsonl'}: step {line['step']}: expected one scored "
            "question or more, and shares of right answers from 0 to 1 that fit each other, in "
            f"{', '.join(NAMES)}"
        )
    return found


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
