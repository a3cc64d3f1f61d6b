"""Picks the questions to train on alone, by the votes that a run has recorded; no label is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pvariance
from typing import Literal

from ttrl.report.run_record import RunRecord
from ttrl.settings import Settings
from ttrl.types import UserError

By = Literal["half", "variance"]
"""half: the majority's share of the votes at the first visit is nearest to one half. variance: that
share varies most over the visits."""


@dataclass(frozen=True, slots=True)
class Visited:
    """A question, with the majority's share of its votes at each visit.

    Example: ``Visited("34+57", (0.5, 0.75))``.
    """

    id: str
    """The question's."""
    shares: tuple[float, ...]
    """`ttrl.types.Vote.majority_ratio`, oldest first."""

    def distance(self, by: By) -> float:
        """Return what is least for the question to choose."""
        return abs(self.shares[0] - 0.5) if by == "half" else -pvariance(self.shares)


def visited(run: RunRecord) -> list[Visited]:
    """Return the questions of a run whose votes were counted, in the order of their first visits.

    A question without a majority at some visit, as nobody had an answer, is left out: it may teach
    nothing.
    """
    shares: dict[str, list[float]] = {}
    mute: set[str] = set()
    for step in run.sampled:
        for group in run.groups(step):
            if not group.judged:
                continue
            shares.setdefault(group.question, []).append(group.majority_ratio)
            if all(answer.answer is None for answer in group.answers if answer.votes):
                mute.add(group.question)
    return [Visited(id, tuple(found)) for id, found in shares.items() if id not in mute]


def chosen(questions: Sequence[Visited], by: By, count: int) -> list[Visited]:
    """Return the ``count`` best questions, best first; of equal ones the first that was visited.

    Raises:
        UserError: if there are too few, or too few visits to have a variance.
    """
    if by == "variance":
        questions = [question for question in questions if len(question.shares) > 1]
    if len(questions) < count:
        needed = " at two visits or more" if by == "variance" else ""
        more = "; record a run of two epochs or more, or use --by half" if needed else ""
        raise UserError(
            f"--count {count}: the run has votes on {len(questions)} questions{needed}, and "
            f"expected are {count} or more{more}"
        )
    return sorted(questions, key=lambda question: question.distance(by))[:count]


def settings_for(questions: Sequence[Visited], run: Settings) -> list[str]:
    """Return what to set, of a run's settings, to train on some of its questions alone.

    A step asks no question twice. So where there are too few for one, each gets more answers.

    Example: one question, of a run of 16 in a step with 64 votes, gets 1024 votes.
    """
    found = [f"data.ids={json.dumps([question.id for question in questions])}"]
    rollout, policy, count = run.rollout, run.policy, len(questions)
    if count < rollout.questions_per_step:
        times = rollout.questions_per_step // count
        trained = times * policy.trained_samples
        found += [
            f"rollout.questions_per_step={count}",
            f"rollout.votes={times * rollout.votes}",
            f"policy.trained_samples={trained}",
        ]
        if policy.sequences_per_update > count * trained:
            found.append(f"policy.sequences_per_update={count * trained}")
    return found
