"""What the rollout pool needs of an inference engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, Question


class Engine(Protocol):
    """An inference engine, as far as the rollout pool needs it."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, waking the engine if it sleeps; an incomplete set is an error."""
        ...

    def sleep(self) -> None:
        """Give back what memory the engine can, until the next `load_weights`."""
        ...

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index into ``questions``, its ``params.n`` completions) as they complete."""
        ...

    def close(self) -> None:
        """End what the engine has started; it is not asked anything afterwards."""
        ...


class CountingEngine(Engine, Protocol):
    """An engine that computes in this process."""

    steps: int
    """Decoding steps so far: it grows as long as sampling makes progress."""


class EngineMaker(Protocol):
    """Makes an engine for the settings' model on this rank; see `make_pool`."""

    def __call__(
        self,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase,
        ranks: Ranks,
        /,
        *,
        load_weights: bool,
    ) -> CountingEngine:
        """Start the engine."""
        ...
