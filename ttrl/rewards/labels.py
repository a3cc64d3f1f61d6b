"""Where labels come from when not from the voters themselves (``reward.labels``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from ttrl.types import CompletionGroup, Question, Vote

Labels = Mapping[str, str | None] | None
"""Question id -> label; None as a whole: the voters' majority is the label."""


class Policy(Protocol):
    """What a teacher needs of a policy."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters by name."""
        ...


class Teacher:
    """Labels by the majority of a slower model's answers.

    Co-rewarding-II (arXiv 2508.00410): the teacher's weights are an exponential moving average of
    the policy's, θ' ← decay·θ' + (1 - decay)·θ after every step, so that the labels cannot follow
    the policy into a corner as fast as it goes there. The paper's decay rises from 0.99 to 0.9999;
    here it is constant, and with 1 the teacher remains the starting model.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        """Start from a copy of the policy's weights."""
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in policy.named_weights()}
        self._known: dict[str, str | None] = {}

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The teacher's parameters, as a rollout pool takes them."""
        yield from self.weights.items()

    @torch.no_grad()
    def follow(self, policy: Policy) -> None:
        """Move towards the policy, after a step."""
        if self.decay < 1:
            for name, tensor in policy.named_weights():
                self.weights[name].lerp_(tensor, 1 - self.decay)

    def labels(
        self,
        questions: Sequence[Question],
        sample: Callable[[Sequence[Question]], Sequence[CompletionGroup]],
        vote: Callable[[CompletionGroup], Vote],
    ) -> Labels:
        """The labels of some questions, by the teacher's weights.

        Args:
            questions: those of the step.
            sample: samples answers with the teacher's weights.
            vote: elects a group's majority.

        A teacher that never moves is asked about each question once.
        """
        fixed = self.decay == 1
        asked = [q for q in questions if not (fixed and q.id in self._known)]
        for group in sample(asked) if asked else ():
            self._known[group.question.id] = vote(group).majority
        return {q.id: self._known[q.id] for q in questions}
