"""Where labels come from: ``reward.labels``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ttrl.run.saving import own_share
from ttrl.system.ranks import Ranks
from ttrl.types import AnswerKey, Question, WeightSource

Labels = Mapping[str, str | None] | None
"""Question id -> label; None as a whole: each question's own voters elect it."""


class LabelSource(Protocol):
    """Says what the answers of a step must agree with."""

    def take(self, questions: Sequence[Question], step: int) -> Labels:
        """The labels of a step's questions."""
        ...

    def follow(self, policy: WeightSource) -> None:
        """Called after every update of the policy."""
        ...


@dataclass(frozen=True, slots=True)
class OwnVotes:
    """The majority of the very answers that are trained on: TTRL (arXiv 2504.16084)."""

    def take(self, questions: Sequence[Question], step: int) -> Labels:
        """Nothing that is known before they have voted."""
        return None

    def follow(self, policy: WeightSource) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The answer key: not test-time training, but the upper bound that the paper compares with."""

    key: AnswerKey

    def take(self, questions: Sequence[Question], step: int) -> Labels:
        """The reference answers; None for questions without one, whose answers earn nothing."""
        return {q.id: self.key.answers.get(q.id) for q in questions}

    def follow(self, policy: WeightSource) -> None:
        """Nothing to do."""


class Teacher:
    """The majority of another model's answers, which moves more slowly than the policy.

    Co-rewarding-II (arXiv 2508.00410): the teacher's weights are an exponential moving average of
    the policy's, θ' ← decay·θ' + (1 - decay)·θ after every step, so that labels cannot follow the
    policy into a corner as fast as it goes there. The paper's decay rises during the run; here it
    is constant, and with 1 the teacher remains the starting model.
    """

    def __init__(
        self,
        policy: WeightSource,
        decay: float,
        elect: Callable[[WeightSource, Sequence[Question], int], Mapping[str, str | None]],
        ranks: Ranks | None = None,
    ) -> None:
        """Start from a copy of the policy's weights, of which each rank keeps a share.

        Args:
            policy: what to follow.
            decay: from 0, which is the policy itself, to 1.
            elect: samples answers to questions with the given weights, in a step, and returns
                their majorities.
            ranks: who shares; None: one process alone.
        """
        self.decay = decay
        self.elect = elect
        self.ranks = ranks or Ranks()
        self._shapes: dict[str, torch.Size] = {}
        self._shares: dict[str, torch.Tensor] = {}
        for name, tensor in policy.named_weights():
            self._shapes[name], self._shares[name] = tensor.shape, own_share(tensor, self.ranks)
        self._known: dict[str, str | None] = {}

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The teacher's parameters, whole; all ranks must walk through them together."""
        for name, shape in self._shapes.items():
            yield name, self.ranks.whole(self._shares[name], shape)

    def take(self, questions: Sequence[Question], step: int) -> Labels:
        """The labels; a teacher that never moves is asked about each question once."""
        asked = [q for q in questions if self.decay < 1 or q.id not in self._known]
        if asked:
            self._known |= self.elect(self, asked, step)
        return {q.id: self._known[q.id] for q in questions}

    @torch.no_grad()
    def follow(self, policy: WeightSource) -> None:
        """Move a little towards the policy."""
        if self.decay < 1:
            for name, tensor in policy.named_weights():
                self._shares[name].lerp_(own_share(tensor, self.ranks), 1 - self.decay)

    def state(self) -> dict[str, str | None]:
        """The labels that are not asked for again, as JSON."""
        return self._known if self.decay == 1 else {}

    def shares(self) -> dict[str, torch.Tensor]:
        """Copies of this rank's shares of the weights, as ``teacher/NAME``; none if they are still
        those of the starting model."""
        return {f"teacher/{name}": self._shares[name].clone() for name in self.sizes()}

    def sizes(self) -> dict[str, int]:
        """How many numbers each of them has, whole, by name."""
        return {n: s.numel() for n, s in self._shapes.items()} if self.decay < 1 else {}

    @torch.no_grad()
    def load_state(
        self, known: Mapping[str, str | None], shares: Mapping[str, torch.Tensor]
    ) -> None:
        """Go on from a `state` and `shares`."""
        self._known = dict(known)
        for name in self.sizes():
            self._shares[name].copy_(shares[f"teacher/{name}"])
