"""The rollout pool: questions in, groups of completions out, whatever engine generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.config import Settings
from ttrl.pretrained import load_model
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.transformers_engine import TransformersEngine
from ttrl.types import Completion, CompletionGroup, Question

ROUNDS = 4
"""How often sampling may stop early: each round waits for its longest answer."""


class Engine(Protocol):
    """What the pool needs of an inference engine."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights; a set that is not complete is an error."""
        ...

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index into ``questions``, its ``params.n`` completions) as they complete."""
        ...


class WeightSource(Protocol):
    """What the pool needs of a policy."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, by the names that the engine knows them by."""
        ...


class RolloutPool:
    """Keeps an engine at the policy's weights and samples from it."""

    def __init__(self, engine: Engine) -> None:
        """An engine, at the weights that it was loaded with."""
        self._engine = engine
        self.policy_version = 0
        """How many weight pushes the engine has received."""

    def refresh(self, policy: WeightSource) -> None:
        """Bring the engine to the policy's present weights."""
        self._engine.load_weights(policy.named_weights())
        self.policy_version += 1

    def sample(
        self,
        questions: Sequence[Question],
        params: SamplingParams,
        on_group: Callable[[CompletionGroup], None] = lambda group: None,
        decided: Callable[[Sequence[Completion], int], bool] | None = None,
    ) -> list[CompletionGroup]:
        """Sample every question ``params.n`` times.

        Args:
            questions: what to ask.
            params: how to sample.
            on_group: called with each group as soon as it is complete, in any order.
            decided: says of a question's completions so far and the number still to come whether
                the rest need not be sampled; asked after each of `ROUNDS` rounds.

        Returns:
            One group per question, in the order of ``questions``.
        """
        groups: dict[int, CompletionGroup] = {}
        sampled: dict[int, tuple[Completion, ...]] = dict.fromkeys(range(len(questions)), ())
        size = params.n if decided is None else -(-params.n // ROUNDS)
        for first in range(0, params.n, size):
            part = replace(params, n=min(size, params.n - first), first=params.first + first)
            asked = [i for i in sampled if i not in groups]
            for place, completions in self._engine.sample([questions[i] for i in asked], part):
                i = asked[place]
                sampled[i] += completions
                rest = params.n - len(sampled[i])
                if rest == 0 or (decided is not None and decided(sampled[i], rest)):
                    groups[i] = CompletionGroup(questions[i], sampled[i], self.policy_version)
                    on_group(groups[i])
        return [groups[i] for i in range(len(questions))]


def make_pool(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> RolloutPool:
    """The pool that the settings ask for; its engine starts from ``model.path``."""
    dtype = getattr(torch, settings.model.dtype)
    model = load_model(settings.model, dtype)
    return RolloutPool(TransformersEngine(model, tokenizer, settings.rollout.batch_size))
