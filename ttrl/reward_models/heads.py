"""Readings whose scores a head of the model computes: Qwen2.5-Math-PRM, Skywork, outcome models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch.nn.functional import linear, relu
from transformers import AutoModel, AutoModelForSequenceClassification

from ttrl.reward_models.folder import WRAP, Folder
from ttrl.reward_models.reading import Marked, Reading, token_at
from ttrl.settings import Settings
from ttrl.types import UserError

SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."


class Hidden(Reading):
    """A reading of the network's last hidden states."""

    def output(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Compute the last hidden states [B, T, H]."""
        hidden: torch.Tensor = self._network(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=False
        ).last_hidden_state
        return hidden


class QwenPrm(Hidden):
    """Qwen2.5-Math-PRM: a chat whose steps each end with a token of their own, ``<extra_0>``.

    Two layers map the hidden state there to two logits; the score is the second one's softmax.
    """

    marks = ("<extra_0>",)
    HEAD: ClassVar = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")

    @classmethod
    def load(cls, folder: Folder, settings: Settings) -> QwenPrm:
        """Load network and head.

        Raises:
            UserError: if the folder holds another kind of model.
        """
        tokenizer = folder.tokenizer()
        mark = tokenizer.encode(cls.marks[0], add_special_tokens=False)
        if len(mark) != 1 or tokenizer.chat_template is None:
            raise UserError(
                f"reward model {folder.name!r}: expected a chat template, and {cls.marks[0]} as "
                f"one token, got {len(mark)} tokens: is it a Qwen2.5-Math-PRM?"
            )
        network = folder.network(AutoModel, beside=("score.", "lm_head."))
        own = settings.reward_model
        made = cls(folder.name, network, tokenizer, own.step or "\n\n", own.batch_size)
        made.mark_id = mark[0]
        made.head = folder.tensors(cls.HEAD, network)
        return made

    mark_id: int
    head: list[torch.Tensor]

    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Write the chat; a place is that of each mark."""
        mark = self.marks[0]
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "".join(f"{step}{mark}" for step in steps)},
        ]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self._tokenizer.encode(str(text), add_special_tokens=False)
        places = tuple(i for i, token in enumerate(ids) if token == self.mark_id)
        if len(places) != len(steps):
            raise UserError(
                f"the chat template of reward model {self._name!r} shows {len(places)} of "
                f"{len(steps)} marks {mark}: expected one that repeats the assistant's turn; {WRAP}"
            )
        return Marked(tuple(ids), places)

    def values(self, output_RH: torch.Tensor) -> torch.Tensor:
        """Compute softmax(W2 relu(W1 h + b1) + b2)[1]."""
        first, first_bias, second, second_bias = self.head
        logits_R2 = linear(relu(linear(output_RH.float(), first, first_bias)), second, second_bias)
        return logits_R2.softmax(-1)[:, 1]


class SkyworkPrm(Hidden):
    """Skywork-o1-Open-PRM: a value head, read at the line break behind each step.

    The text is the question, a line break, and the steps, each with a line break. The score is the
    sigmoid of the head's value.
    """

    HEAD: ClassVar = ("v_head.summary.weight", "v_head.summary.bias")
    head: list[torch.Tensor]

    @classmethod
    def load(cls, folder: Folder, settings: Settings) -> Self:
        """Load network and head."""
        network = folder.network(AutoModel, beside=("v_head.", "lm_head."))
        own = settings.reward_model
        tokenizer = folder.tokenizer()
        made = cls(folder.name, network, tokenizer, own.step or "\n", own.batch_size)
        made.head = folder.tensors(cls.HEAD, network)
        return made

    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Write question and steps; each piece is encoded by itself, as the model was trained."""
        encode = self._tokenizer.encode
        bos = self._tokenizer.bos_token or ""
        ids = encode(f"{bos}{question}\n", add_special_tokens=False)
        end = encode("\n", add_special_tokens=False)[-1]
        places = []
        for step in steps:
            ids += [*encode(step, add_special_tokens=False), end]
            places.append(len(ids) - 1)
        return Marked(tuple(ids), tuple(places))

    def values(self, output_RH: torch.Tensor) -> torch.Tensor:
        """Compute sigmoid(w h + b)."""
        weight, bias = self.head
        return linear(output_RH.float(), weight, bias).squeeze(-1).sigmoid()


class Outcome(Reading):
    """An outcome reward model: a classifier of one class, read at the end of the whole answer.

    The text is a chat of question and answer, where the tokenizer has a template, else both on
    lines of their own. The score is the sigmoid of the classifier's only logit, at the last
    character of the answer: what a template writes behind it says nothing of it.
    """

    @classmethod
    def load(cls, folder: Folder, settings: Settings) -> Outcome:
        """Load the classifier.

        Raises:
            UserError: if it has more classes than one.
        """
        network = folder.network(AutoModelForSequenceClassification)
        labels = network.config.num_labels
        if labels != 1 or not hasattr(network, "score"):
            raise UserError(
                f"reward model {folder.name!r}: expected a {type(network).__name__} with one "
                f"label and a weight score, got {labels} labels"
            )
        own = settings.reward_model
        tokenizer = folder.tokenizer()
        return cls(folder.name, network, tokenizer, own.step or "\n\n", own.batch_size)

    def mark(self, question: str, steps: Sequence[str]) -> Marked:
        """Write question and answer; the only place is that of the answer's last character."""
        tokenizer = self._tokenizer
        answer = self.step.join(steps)
        if tokenizer.chat_template is None:
            text = f"{tokenizer.bos_token or ''}{question}\n{answer}"
        else:
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(encoded["input_ids"])
        if not answer:
            return Marked(ids, (len(ids) - 1,))
        begin = text.rfind(answer)
        if begin < 0:
            raise UserError(
                f"the chat template of reward model {self._name!r} does not show the answer as it "
                "is: expected one that repeats the assistant's turn; wrap the model, FILE.py:FN"
            )
        return Marked(ids, (token_at(encoded["offset_mapping"], begin + len(answer) - 1),))

    def output(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Compute the classifier's logits [B, T, 1] at every place."""
        body = self._network.base_model(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=False
        ).last_hidden_state
        classify: Any = self._network.score
        logits: torch.Tensor = classify(body)
        return logits

    def values(self, output_RH: torch.Tensor) -> torch.Tensor:
        """Compute the sigmoid of the logit."""
        return output_RH.float().squeeze(-1).sigmoid()
