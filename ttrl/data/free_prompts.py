"""Prompts with what the model has said: for a free pass of labels, or a later turn of agents.

What the model has said is hostile text. It is put in as data of the user's message, spells no
control token there (`ttrl.data.prompts`), and is cut to the room that there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ttrl.data.prompts import ControlTokens, make_question
from ttrl.settings import DataSettings, Settings
from ttrl.types import Question, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_THINKING = "</think>"
"""What a reasoning model writes before the text that is meant for others."""
SLACK = 4
"""Tokens by which a text may grow where it is joined to the next one."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text of which only the end is shown, where there is no room for all of it."""

    text: str
    """The whole text."""


@dataclass(frozen=True, slots=True)
class Request:
    """A message about a question, to be answered by the policy."""

    question: Question
    """The question that it is about."""
    parts: Sequence[str | Excerpt]
    """The message, from its first part to its last."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that the engine has room for."""

    prompt: Question
    cut: int
    """Tokens of excerpts that are left out, at their beginnings."""


def without_thinking(text: str) -> str:
    """Return a model's text without what it thought before it; white space stays."""
    return text.rpartition(END_OF_THINKING)[2]


def text_of(
    question: Question,
    cannot: str = "be put in another prompt",
    mend: str = 'set reward.labels = "votes" and rollout.workflow = "single_turn", or leave it out',
) -> str:
    """Return the text of a question.

    Args:
        question: the question.
        cannot: what a question without a text cannot, for the message.
        mend: what to do then.

    Raises:
        UserError: if it has none of its own.
    """
    if question.text is None:
        raise UserError(
            f"question {question.id!r} cannot {cannot}: expected a text, or one message of the "
            f"user, got a conversation (or a source that sets no Question.text); {mend}"
        )
    return question.text


class FreePrompts:
    """Makes prompts of requests: checked, and short enough for the engine."""

    def __init__(
        self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, longest: int
    ) -> None:
        """Use the policy's chat template, and at most ``longest`` tokens with the reply."""
        self._tokenizer, self._longest = tokenizer, longest
        plain = settings.model_copy(update={"suffix": ""})
        self._kinds = {True: settings, False: plain}
        self._control = ControlTokens(settings, tokenizer)

    @classmethod
    def of(cls, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Make the prompts of a run, which have room for a reply within the settings' model."""
        from ttrl.models.pretrained import context_room, load_outline  # imports torch

        room = context_room(load_outline(settings.model))
        longest = settings.longest if room is None else min(settings.longest, room.tokens)
        return cls(settings.data, tokenizer, longest)

    def prompt(
        self, request: Request, id: str, max_new_tokens: int, *, answers: bool
    ) -> Question | None:
        """Make the prompt of a request.

        Args:
            request: what is asked.
            id: what the prompt is called; its random numbers depend on it.
            max_new_tokens: tokens of the reply, for which there must be room.
            answers: whether ``data.suffix`` asks for an answer in its form.

        Returns:
            The prompt; None if it is too long, or holds a control token all the same.
        """
        made = self.fitted(request, id, max_new_tokens, answers=answers)
        return None if made is None else made.prompt

    def fitted(
        self, request: Request, id: str, max_new_tokens: int, *, answers: bool
    ) -> Fitted | None:
        """Make the prompt of a request, and count the tokens that it has no room for."""
        texts = [self._control.harmless(_text(part)) for part in request.parts]
        places = [i for i, part in enumerate(request.parts) if isinstance(part, Excerpt)]
        excerpts = [self._tokenizer.encode(texts[i], add_special_tokens=False) for i in places]
        room = self._longest - max_new_tokens
        around = "".join("" if i in places else text for i, text in enumerate(texts))
        left = room - len(self._made(around, id, answers=answers).prompt_ids)
        lengths = shares([len(ids) for ids in excerpts], left - SLACK * len(excerpts))
        for i, ids, length in zip(places, excerpts, lengths, strict=True):
            if length < len(ids):  # with 0 there is no room at all, see below
                texts[i] = str(self._tokenizer.decode(ids[len(ids) - length :]))
        made = self._made("".join(texts), id, answers=answers)
        seen = all(length or not ids for ids, length in zip(excerpts, lengths, strict=True))
        fits = 0 < len(made.prompt_ids) <= room and seen
        harmless = self._control.foreign(made.text or "", made.prompt_ids) is None
        if not (fits and harmless):
            return None
        cut = sum(len(ids) - length for ids, length in zip(excerpts, lengths, strict=True))
        return Fitted(made, cut)

    def tokens(self, text: str) -> int:
        """Count the tokens of a text, as an excerpt of which they are."""
        return len(self._tokenizer.encode(self._control.harmless(text), add_special_tokens=False))

    def _made(self, message: str, id: str, *, answers: bool) -> Question:
        return make_question(id, message, self._kinds[answers], self._tokenizer)


def _text(part: str | Excerpt) -> str:
    return part if isinstance(part, str) else part.text


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """Divide ``room`` among texts of these lengths: as much for each, unless it needs less."""
    found = list(lengths)
    left = sorted(range(len(lengths)), key=lengths.__getitem__)
    for place, i in enumerate(left):
        found[i] = max(0, min(lengths[i], room // (len(left) - place)))
        room -= found[i]
    return found
