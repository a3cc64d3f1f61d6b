"""What a trained model minimizes: the protocol, and what one micro-batch of it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ttrl.types import PackedBatch, TrainSample, UpdateResult

Network = Callable[..., Any]
"""A `ttrl.models.packed_model.PackedModel`, or what wraps it: (batch, **options of the head)."""


class TokenScores(NamedTuple):
    """What a language model says of the trained tokens of a sample."""

    logprobs: tuple[float, ...]
    """Log-prob of each token, in nats."""
    entropies: tuple[float, ...]
    """Entropy of the distribution that each token was drawn from, in nats."""


Scorer = Callable[[Sequence[TrainSample]], list[TokenScores]]
"""The trained model's own scores of each sample, by all ranks together."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one micro-batch, with figures of its tokens."""

    loss: Tensor
    """Scalar: a sum over tokens of token weight x token loss, which normalizes it."""
    means: Mapping[str, Tensor] = field(default_factory=dict)
    """Figures by name, [T] each, averaged over the trained tokens of the optimizer step."""
    largest: Mapping[str, Tensor] = field(default_factory=dict)
    """Figures by name, [T] each, of which the optimizer step's largest is reported."""


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """The samples of one optimizer step, with all that their loss needs."""

    samples: Sequence[TrainSample]
    """As many as there were."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Figures of the step by name, beside those of `Loss.means`."""


class Objective(Protocol):
    """A loss on packed batches; `ttrl.learner.policy_objective` has the policy's."""

    def has_gradient(self, sample: TrainSample) -> bool:
        """Say whether the sample has a gradient now; those that have none cost no forward pass."""
        ...

    def token_weights(self, samples: Sequence[TrainSample]) -> list[float]:
        """Return the weight of each token of each sample, over one optimizer step of all ranks."""
        ...

    def prepared(self, steps: Sequence[Sequence[TrainSample]], score: Scorer) -> list[PreparedStep]:
        """Complete the samples of a rollout's optimizer steps, before the first one is taken.

        Whatever is a function of a whole optimizer step is computed here, so that it depends
        neither on its micro-batches nor on ranks. All ranks call this together.
        """
        ...

    def loss(self, network: Network, batch: PackedBatch) -> Loss:
        """Compute the loss of a micro-batch; changes nothing."""
        ...

    def after_step(self, result: UpdateResult) -> None:
        """Take notice of an optimizer step; ``result`` is the same on all ranks.

        An objective that keeps something of it is `Stateful`.
        """
        ...
