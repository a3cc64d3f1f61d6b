"""Credit assignment: from what answers are worth to what each of their tokens is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ttrl.learner.trained_model import TrainedModel
from ttrl.types import CompletionGroup, Estimate, TrainSample, UpdateResult


@dataclass(frozen=True, slots=True)
class Assigned:
    """The samples that a step trains on."""

    samples: list[TrainSample]
    """The samples, in the order in which they are trained on."""
    chosen: list[list[int]]
    """Per group, the indices of the completions that the samples are of."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures of the assignment, as they are in ``metrics.jsonl``."""
    updates: Mapping[str, Sequence[UpdateResult]] = field(default_factory=dict)
    """The optimizer steps of the credit's own models, by their names."""


class Credit(Protocol):
    """Says what each token of a step's answers is worth, and which are trained on.

    It may hold models of its own, and train them (a critic, an implicit reward): see ``models``.
    """

    @property
    def models(self) -> Mapping[str, TrainedModel]:
        """Return the models that it trains, by name: a checkpoint holds them."""
        ...

    def assign(
        self, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate], step: int
    ) -> Assigned:
        """Choose the samples of a step; all ranks call this together, and choose the same.

        Args:
            groups: the step's groups.
            estimates: one per group, in the same order.
            step: the training step.

        Raises:
            FloatingPointError: on all ranks, if an update of a model of its own is not finite.
        """
        ...
