"""Where labels come from: ``reward.labels``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ttrl.system.ranks import Ranks, own_shard
from ttrl.types import AnswerKey, Question, WeightSource

Labels = Mapping[str, str | None] | None
"""Question id -> label; None as a whole: each question's own voters elect it."""


Elect = Callable[[WeightSource, Sequence[Question], int], Mapping[str, str | None]]
"""Function that samples answers with the given weights, in a step, and returns the majorities."""


class LabelSource(Protocol):
    """Says what the answers of a step must agree with."""

    def labels_for(self, questions: Sequence[Question], step: int, elect: Elect) -> Labels:
        """Return the labels of a step's questions."""
        ...

    def after_update(self, policy: WeightSource) -> None:
        """Take note of an update of the policy."""
        ...


@dataclass(frozen=True, slots=True)
class OwnVotes:
    """The majority of the very answers that are trained on: TTRL (arXiv 2504.16084)."""

    def labels_for(self, questions: Sequence[Question], step: int, elect: Elect) -> Labels:
        """Return None: nothing is known before the answers have voted."""
        return None

    def after_update(self, policy: WeightSource) -> None:
        """Ignore an update of the policy."""


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The answer key: not test-time training, but the upper bound that the paper compares with."""

    key: AnswerKey

    def labels_for(self, questions: Sequence[Question], step: int, elect: Elect) -> Labels:
        """Return the reference answers; None where there is none, and answers earn nothing."""
        return {q.id: self.key.answers.get(q.id) for q in questions}

    def after_update(self, policy: WeightSource) -> None:
        """Ignore an update of the policy."""


@dataclass(frozen=True, slots=True)
class CheckedAnswers:
    """What a checker computes from the text of a question; no answer key has a part in it."""

    answer: Callable[[str], str | None]

    def labels_for(self, questions: Sequence[Question], step: int, elect: Elect) -> Labels:
        """Return the checker's answers."""
        return {q.id: None if q.text is None else self.answer(q.text) for q in questions}

    def after_update(self, policy: WeightSource) -> None:
        """Ignore an update of the policy."""


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
        ranks: Ranks | None = None,
    ) -> None:
        """Start from a copy of the policy's weights, of which each rank keeps a shard.

        Args:
            policy: what to follow.
            decay: from 0, which is the policy itself, to 1.
            ranks: who shares; None: one process alone.
        """
        self.decay = decay
        self.ranks = ranks or Ranks()
        self._shapes: dict[str, torch.Size] = {}
        self._shards: dict[str, torch.Tensor] = {}
        for name, tensor in policy.named_weights():
            self._shapes[name], self._shards[name] = tensor.shape, own_shard(tensor, self.ranks)
        self._known: dict[str, str | None] = {}

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the teacher's parameters, whole; all ranks must walk through them together."""
        for name, shape in self._shapes.items():
            yield name, self.ranks.whole(self._shards[name], shape)

    def labels_for(self, questions: Sequence[Question], step: int, elect: Elect) -> Labels:
        """Return the labels; a teacher that never moves is asked about each question once."""
        asked = [q for q in questions if self.decay < 1 or q.id not in self._known]
        if self.decay < 1:
            return elect(self, asked, step)
        if asked:
            self._known |= elect(self, asked, step)
        return {q.id: self._known[q.id] for q in questions}

    def forget(self, questions: Sequence[Question]) -> None:
        """Drop the labels of questions that are not asked again."""
        for question in questions:
            self._known.pop(question.id, None)

    @torch.no_grad()
    def after_update(self, policy: WeightSource) -> None:
        """Move the weights a little towards the policy's."""
        if self.decay < 1:
            for name, tensor in policy.named_weights():
                self._shards[name].lerp_(own_shard(tensor, self.ranks), 1 - self.decay)

    def state(self) -> dict[str, str | None]:
        """Return the labels that are not asked for again, as JSON."""
        return self._known if self.decay == 1 else {}

    def load_state(self, state: Mapping[str, str | None]) -> None:
        """Restore what `state` returned, whose `shards` are then to be loaded."""
        self._known = dict(state)

    def shard_sizes(self) -> dict[str, int]:
        """Count the numbers of each weight, whole, by name; none if they never move."""
        return {n: s.numel() for n, s in self._shapes.items()} if self.decay < 1 else {}

    def shards(self) -> dict[str, torch.Tensor]:
        """Copy this rank's shards of the weights, by name; none if they never move."""
        return {name: self._shards[name].clone() for name in self.shard_sizes()}

    @torch.no_grad()
    def load_shards(self, shards: Mapping[str, torch.Tensor]) -> None:
        """Put back what `shards` gave."""
        for name, shard in shards.items():
            self._shards[name].copy_(shard)
