"""Credit assignment: from what answers are worth to what each of their tokens is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ttrl.types import CompletionGroup, Estimate, TrainSample


@dataclass(frozen=True, slots=True)
class Assigned:
    """The samples that a step trains on."""

    samples: list[TrainSample]
    """The samples, in the order in which they are trained on."""
    chosen: list[list[int]]
    """Per group, the indices of the completions that the samples are of."""


class Credit(Protocol):
    """Says what each token of a step's answers is worth, and which are trained on."""

    def assign(
        self, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate], step: int
    ) -> Assigned:
        """Choose the samples of a step; all ranks call this together, and choose the same.

        Args:
            groups: the step's groups.
            estimates: one per group, in the same order.
            step: the training step.
        """
        ...
