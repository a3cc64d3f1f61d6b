"""Readings of a language model's next token, good or bad: Math-Shepherd and RLHFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from transformers import AutoModelForCausalLM

from ttrl.reward_models.folder import WRAP, Folder
from ttrl.reward_models.reading import Marked, Reading, token_at
from ttrl.settings import Settings
from ttrl.types import UserError

SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of models whose logits are more than a product: they are not read here."""


class TwoTokens(Reading):
    """The probability of "+" against that of "-", where either could come next."""

    good, bad = "+", "-"
    step_end = "\n\n"
    """What ends a step, unless the settings say otherwise."""
    ids: tuple[int, int]
    """Token ids of good and bad."""

    @classmethod
    def load(cls, folder: Folder, settings: Settings) -> Self:
        """Load the language model.

        Raises:
            UserError: if it scales its logits, or has one token for good and bad.
        """
        tokenizer, own = folder.tokenizer(), settings.reward_model
        network = folder.network(AutoModelForCausalLM)
        if scaled := [name for name in SCALED if getattr(network.config, name, None) is not None]:
            raise UserError(
                f"reward model {folder.name!r} scales its logits ({scaled[0]}), which is not read "
                f"here: {WRAP.removeprefix('or ')}"
            )
        step = own.step or cls.step_end
        made = cls(folder.name, network, tokenizer, step, own.batch_size)
        made.ids = made.candidates()
        if made.ids[0] == made.ids[1]:
            raise UserError(
                f"the tokenizer of reward model {folder.name!r} has one token for {cls.good!r} and "
                f"{cls.bad!r}: expected two; is it of the kind that you named? {WRAP}"
            )
        return made

    def candidates(self) -> tuple[int, int]:
        """Return the token ids of good and bad, alone behind nothing."""
        encode = self._tokenizer.encode
        good, bad = (encode(text, add_special_tokens=False)[-1] for text in (self.good, self.bad))
        return good, bad

    def output(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Compute the last hidden states [B, T, H]: logits of all places would be too many."""
        hidden: torch.Tensor = self._network.base_model(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=False
        ).last_hidden_state
        return hidden

    def values(self, output_RH: torch.Tensor) -> torch.Tensor:
        """Compute P(good) / (P(good) + P(bad))."""
        logits_RV = self._network.get_output_embeddings()(output_RH)
        chance_R: torch.Tensor = logits_RV[:, list(self.ids)].float().softmax(-1)[:, 0]
        return chance_R


class MathShepherd(TwoTokens):
    """Math-Shepherd: the mark "ки" behind each step, where "+" or "-" comes next.

    The text is the question, a blank, and the steps, each with a blank and the mark, on lines of
    their own.
    """

    marks = ("ки",)
    step_end = "\n"

    def candidates(self) -> tuple[int, int]:
        """Return the token ids of good and bad, as they are behind a blank."""
        encode = self._tokenizer.encode
        behind = [encode(f"x {t}", add_special_tokens=False)[-1] for t in (self.good, self.bad)]
        return behind[0], behind[1]

    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Write question and steps; a place is that of the mark's last character."""
        text, ends = f"{question} ", []
        for step in steps:
            text += f"{step} {self.marks[0]}"
            ends.append(len(text) - 1)
            text += "\n"
        # With special tokens: its tokenizer begins a text with one.
        encoded = self._tokenizer(text.rstrip("\n"), return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        return Marked(tuple(encoded["input_ids"]), tuple(token_at(offsets, end) for end in ends))


class RlhFlow(TwoTokens):
    """RLHFlow's process reward models: a chat whose user says the steps, one in each turn.

    The assistant answers "+" each time; a score is read where that is still to come. The first turn
    is the question, a blank, and the first step.
    """

    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Write the chat; a place is that of the token before each "+"."""
        messages: list[dict[str, str]] = []
        begins = []
        for i, step in enumerate(steps):
            said = f"{question} {step}".strip() if i == 0 else step
            messages.append({"role": "user", "content": said})
            begins.append(self._chat(messages, asks=True))
            messages.append({"role": "assistant", "content": self.good})
        text = self._chat(messages, asks=False)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, places = tuple(encoded["input_ids"]), []
        for begin in begins:
            rest = text[len(begin) :].lstrip()
            if not text.startswith(begin) or not rest.startswith(self.good):
                raise UserError(
                    f"the chat template of reward model {self._name!r} does not write each turn "
                    f"behind the ones before: expected the template of RLHFlow's models; {WRAP}"
                )
            at = token_at(encoded["offset_mapping"], len(text) - len(rest))
            places.append(at - 1)
        return Marked(ids, tuple(places))

    def _chat(self, messages: Sequence[dict[str, str]], *, asks: bool) -> str:
        if self._tokenizer.chat_template is None:
            raise UserError(
                f"the tokenizer of reward model {self._name!r} has no chat template, which models "
                f"of this kind are asked in; {WRAP}"
            )
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asks
        )
        return str(text)
