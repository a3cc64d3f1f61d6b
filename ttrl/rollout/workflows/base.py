"""How a step's questions become groups of answers: in one turn, or in a way of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ttrl.rollout.sampling import SamplingParams
from ttrl.types import CompletionGroup, Question

OnGroup = Callable[[CompletionGroup], None]
"""Function that is told of each group as soon as it is complete, in any order."""


class Ask(Protocol):
    """The rollout pool, as far as a workflow may use it."""

    def __call__(
        self, questions: Sequence[Question], params: SamplingParams, on_group: OnGroup, /
    ) -> list[CompletionGroup]:
        """Sample every question ``params.n`` times, and return the groups in the same order.

        ``on_group`` is told of those that this rank has sampled.
        """
        ...


class Workflow(Protocol):
    """Asks a step's questions; what it returns votes."""

    def run(
        self, ask: Ask, questions: Sequence[Question], step: int, on_group: OnGroup
    ) -> list[CompletionGroup]:
        """Return one group per question, in the same order; all ranks call this together.

        With ``rollout.resample_rounds`` it is called again in a step, for other questions.

        Args:
            ask: samples; may be called several times, for each of them with random numbers of
                their own (`SamplingParams.stream`); ``top_p`` and ``min_p`` need ``top_k``.
            questions: the step's.
            step: the training step.
            on_group: to be told of each group that is to vote, as it is returned, by a rank at
                least.
        """
        ...
