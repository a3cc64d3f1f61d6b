"""A reward model that reads a solution in one pass, and is asked at one place for each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ttrl.models.pretrained import context_room
from ttrl.reward_models.texts import asked_text, control_texts, harmless, steps_of
from ttrl.types import Question, UserError


@dataclass(frozen=True, slots=True)
class Marked:
    """What is read of a solution, and where the scores of its steps stand.

    Example: ``Marked((1, 7, 9, 8, 9), places=(2, 4))``.
    """

    ids: tuple[int, ...]
    """Question and solution as token ids."""
    places: tuple[int, ...]
    """Per step, the index into ``ids`` that its score is read at."""


class Reading(ABC):
    """A network with a way to read it: subclasses say where, and how a score is made there."""

    marks: tuple[str, ...] = ()
    """Texts that this reading puts between steps, and no solution may spell."""

    def __init__(
        self,
        name: str,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        step: str,
        batch_size: int,
    ) -> None:
        """Take over a network.

        Args:
            name: what the user calls the reward model, for messages.
            network: on its device, without gradients.
            tokenizer: a fast one.
            step: what ends a step of a solution.
            batch_size: solutions that are read together, at most.
        """
        self.step = step
        self._name, self._network, self._tokenizer = name, network, tokenizer
        self._batch_size = batch_size
        self._controls = control_texts(tokenizer, *self.marks)

    @abstractmethod
    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Return the tokens of a question and of a solution's steps, with the steps' places.

        Raises:
            UserError: if the tokenizer or its template does not let the places be found.
        """

    @abstractmethod
    def values(self, output_RH: torch.Tensor) -> torch.Tensor:
        """Compute the scores [R], from 0 to 1, from the network's output at R places."""

    @abstractmethod
    def output(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Compute the network's output [B, T, ...] for right-padded rows."""

    def scores(self, question: Question, solutions: Sequence[str]) -> list[tuple[float, ...]]:
        """Score the steps of each solution, as `ttrl.reward_models.base.RewardModel` demands.

        Raises:
            UserError: if one does not fit the model's context.
        """
        asked = harmless(asked_text(question), self._controls)
        marked = []
        for solution in solutions:
            steps = [harmless(s, self._controls) for s in steps_of(solution, self.step)]
            marked.append(self.mark(asked, steps))
        self._refuse_overflow(question, marked)
        by_length = sorted(range(len(marked)), key=lambda i: len(marked[i].ids))
        found: dict[int, tuple[float, ...]] = {}
        for first in range(0, len(by_length), self._batch_size):
            batch = by_length[first : first + self._batch_size]
            found |= dict(zip(batch, self._read([marked[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(marked))]

    @torch.inference_mode()
    def _read(self, batch: Sequence[Marked]) -> list[tuple[float, ...]]:
        width, where = max(len(m.ids) for m in batch), self._network.device
        ids_BT = torch.tensor([[*m.ids, *[0] * (width - len(m.ids))] for m in batch], device=where)
        length_B1 = torch.tensor([[len(m.ids)] for m in batch], device=where)
        mask_BT = torch.arange(width, device=where) < length_B1
        output = self.output(ids_BT, mask_BT)
        rows = [b for b, m in enumerate(batch) for _ in m.places]
        places = [place for m in batch for place in m.places]
        values = iter(self.values(output[rows, places]).tolist())
        return [tuple(next(values) for _ in m.places) for m in batch]

    def _refuse_overflow(self, question: Question, marked: Sequence[Marked]) -> None:
        room = context_room(self._network)
        longest = max((len(m.ids) for m in marked), default=0)
        if room is not None and longest > room.tokens:
            raise UserError(
                f"question {question.id!r} and a solution have {longest} tokens, but the context "
                f"of reward model {self._name!r} is {room.tokens}{room.why}; lower "
                "rollout.max_new_tokens, or choose another reward model"
            )


def token_at(offsets: Sequence[tuple[int, int]], place: int) -> int:
    """Return the index of the last token that holds some of the character at ``place``.

    Of a character that the tokenizer drops, as some do with what is not to be seen: that of the
    nearest one before it.
    """
    holds = [i for i, (begin, end) in enumerate(offsets) if begin <= place < end]
    before = [i for i, (begin, end) in enumerate(offsets) if begin < end <= place]
    return max(holds or before, default=0)
