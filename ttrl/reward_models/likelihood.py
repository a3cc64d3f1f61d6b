"""A language model of right solutions as a reward model: how probable is what is there so far?

A model that was trained on nothing but solutions that a checker has passed gives a slip a small
probability, and with it all that follows. tiny-prm, of the embedded task, is such a model. Where a
right solution may be written in many ways, the score says how usual its wording is, too, and is
good for comparing steps of the same kind only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from transformers import AutoModelForCausalLM

from ttrl.reward_models.folder import WRAP, Folder
from ttrl.reward_models.reading import Marked, Reading, token_at
from ttrl.settings import Settings
from ttrl.types import UserError


class Likelihood(Reading):
    """The probability of a solution up to the end of each step, given the question.

    The text is a chat of question and solution, whose steps end as they did when they were written.
    What ends the last step is not part of it.
    """

    @classmethod
    def load(cls, folder: Folder, settings: Settings) -> Self:
        """Load the language model.

        Raises:
            UserError: if its tokenizer has no chat template.
        """
        tokenizer, own = folder.tokenizer(), settings.reward_model
        if tokenizer.chat_template is None:
            raise UserError(
                f"the tokenizer of reward model {folder.name!r} has no chat template, which models "
                f"of this kind are asked in; {WRAP}"
            )
        network = folder.network(AutoModelForCausalLM)
        return cls(folder.name, network, tokenizer, own.step or "\n", own.batch_size)

    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Write the chat; the first place is that before the solution, and no step's."""
        turns = [{"role": "user", "content": question}]
        text = str(
            self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
        ends = [len(text) - 1]
        for i, step in enumerate(steps):
            text += f"{self.step if i else ''}{step}"
            ends.append(len(text) - 1)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        return Marked(tuple(encoded["input_ids"]), tuple(token_at(offsets, end) for end in ends))

    def output(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Sum up the log-probs of the tokens up to each place [B, T]; of the first token, 0."""
        logits_BTV = self._network(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        logp_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
        logp_BT = logp_BTV.gather(-1, ids_BT[:, 1:].unsqueeze(-1)).squeeze(-1)
        return torch.nn.functional.pad(logp_BT.double().cumsum(-1), (1, 0))

    def values(self, output_RH: torch.Tensor) -> torch.Tensor:
        """Return the sums as they are: a solution's own begins where the question ends."""
        return output_RH

    def _read(self, batch: Sequence[Marked]) -> list[tuple[float, ...]]:
        return [
            tuple(math.exp(min(0.0, end - begin)) for end in ends)
            for begin, *ends in super()._read(batch)
        ]
