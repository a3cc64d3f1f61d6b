"""Weights to go back to when a run collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ttrl.learner.policies import Policies
from ttrl.learner.trained_model import TrainedModel

WEIGHTS = ("weights",)


class WeightSnapshots:
    """The weights at the start of this pass over the questions, and of the one before.

    Labels that differ between two passes were spoiled during the earlier one. Where passes are
    rated, the older weights are those of the best pass.
    """

    def __init__(self, model: TrainedModel | Policies, steps_per_pass: int) -> None:
        """Keep the model's weights as those of step 0: on every rank, its shard."""
        self.model = model
        self.steps_per_pass = steps_per_pass
        self.kept = [(0, model.shards(WEIGHTS))]

    def after_step(self, step: int, *, before_is_better: bool = True) -> None:
        """Keep the weights at the end of a pass, and the older ones to go back to.

        These are those of the pass before, if ``before_is_better``; else they stay what they are.
        """
        if step % self.steps_per_pass == 0:
            older = self.kept[-1 if before_is_better else 0]
            self.kept = [older, (step, self.model.shards(WEIGHTS))]

    def restore(self) -> int:
        """Give the model the older weights back; return the step that they are from."""
        step, weights = self.kept[0]
        self.model.load_shards(weights)
        return step

    def state(self) -> list[int]:
        """Return the steps whose weights are kept, as JSON."""
        return [step for step, _ in self.kept]

    def load_state(self, state: Sequence[int]) -> None:
        """Restore what `state` returned, whose `shards` are then to be loaded."""
        self.kept = [(int(step), {}) for step in state]

    def shard_sizes(self) -> dict[str, int]:
        """Count the numbers of each kept weight, whole: of the first step as ``0/weights/NAME``."""
        sizes = self.model.shard_sizes(WEIGHTS)
        return {f"{i}/{key}": size for i in range(len(self.kept)) for key, size in sizes.items()}

    def shards(self) -> dict[str, torch.Tensor]:
        """Return this rank's shards of the kept weights."""
        return {
            f"{i}/{key}": shard
            for i, (_, shards) in enumerate(self.kept)
            for key, shard in shards.items()
        }

    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave."""
        for key, shard in shards.items():
            i, _, name = key.partition("/")
            self.kept[int(i)][1][name] = shard
