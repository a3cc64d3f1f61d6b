"""The loss of an implicit reward model (PRIME, arXiv 2502.01456, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ttrl.learner.objective import Loss, Network, PreparedStep, Scorer
from ttrl.types import PackedBatch, TrainSample, UpdateResult


@dataclass(frozen=True, slots=True)
class ImplicitRewardObjective:
    """Cross-entropy between an answer's outcome and σ(β Σ_t log φ(y_t) / ref(y_t))."""

    beta: float
    reference_logp: Callable[[PackedBatch], torch.Tensor]
    """The starting model's log-probs [T] of a batch's targets, at temperature 1."""

    def has_gradient(self, sample: TrainSample) -> bool:
        """Return True: no finite log-ratio is certain of the outcome."""
        return True

    def token_weights(self, samples: Sequence[TrainSample]) -> list[float]:
        """Return 1 / (S n_s): every one of S answers weighs the same, whatever its n_s tokens."""
        return [1 / (len(samples) * len(s.logprobs)) for s in samples]

    def prepared(self, steps: Sequence[Sequence[TrainSample]], score: Scorer) -> list[PreparedStep]:
        """Return the samples as they are: their ``returns`` are the outcomes."""
        return [PreparedStep(step) for step in steps]

    def loss(self, network: Network, batch: PackedBatch) -> Loss:
        """Compute the mean over answers of BCE(σ(β Σ_t q_t), outcome)."""
        if batch.returns_T is None:
            raise ValueError("an implicit reward model is trained on samples with returns")
        ratio_T = network(batch, temperature=1.0).logp_T - self.reference_logp(batch)

        def summed(values_T: torch.Tensor) -> torch.Tensor:
            return values_T.new_zeros(batch.samples).index_add(0, batch.samples_T, values_T)

        weights_S = summed(batch.token_weights_T)
        outcomes_S = summed(batch.returns_T) / summed(torch.ones_like(batch.returns_T))
        losses_S = F.binary_cross_entropy_with_logits(
            self.beta * summed(ratio_T), outcomes_S, reduction="none"
        )
        return Loss(loss=(weights_S * losses_S).sum(), means={"log_ratio": ratio_T.detach()})

    def after_step(self, result: UpdateResult) -> None:
        """Take no notice: every step's loss is the same function."""
