"""The loss of a critic: clipped squared errors of its values (PPO, arXiv 1707.06347)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ttrl.learner.objective import Loss, Network, PreparedStep, Scorer
from ttrl.types import PackedBatch, TrainSample, UpdateResult


@dataclass(frozen=True, slots=True)
class ValueObjective:
    """Half the squared distance of values from returns, as far as values may move at a time."""

    clip: float
    """How far a value may move from `TrainSample.values`."""

    def has_gradient(self, sample: TrainSample) -> bool:
        """Return True: hardly a value is right to the bit."""
        return True

    def token_weights(self, samples: Sequence[TrainSample]) -> list[float]:
        """Return the same weight for every token: the loss is a mean over tokens."""
        return [1 / sum(len(s.logprobs) for s in samples)] * len(samples)

    def prepared(self, steps: Sequence[Sequence[TrainSample]], score: Scorer) -> list[PreparedStep]:
        """Return the samples as they are: they bring ``returns`` and ``values``."""
        return [PreparedStep(step) for step in steps]

    def loss(self, network: Network, batch: PackedBatch) -> Loss:
        """Compute w · ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²), summed over tokens."""
        if batch.returns_T is None or batch.values_T is None:
            raise ValueError("a critic is trained on samples with returns and values")
        values_T = network(batch)
        errors_T = (values_T - batch.returns_T).square()
        moved_T = values_T - batch.values_T
        held_T = batch.values_T + moved_T.clamp(-self.clip, self.clip) - batch.returns_T
        held_T = held_T.square()
        clipped_T = (moved_T.abs() > self.clip) & (held_T > errors_T)
        loss = (batch.token_weights_T * 0.5 * torch.maximum(errors_T, held_T)).sum()
        return Loss(loss, means={"clip_fraction": clipped_T})

    def after_step(self, result: UpdateResult) -> None:
        """Take no notice: every step's loss is the same function."""
