"""From a question to the text and the tokens that the model reads.

A question is hostile text: it may spell a control token such as ``<|im_end|>``, which the
tokenizer would turn into the real one, and so end the user's turn and open another. Such a
question is refused (`ControlTokens`) rather than taken apart into harmless tokens: so the
prompt's text and its tokens always say the same, whichever of them a rollout engine is given.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import jinja2

from ttrl.config import DataSettings
from ttrl.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HARMLESS = "1 + 1"


def build_prompt(question: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    """The question with its suffix, inside the tokenizer's chat template if the settings say so.

    Raises:
        UserError: the tokenizer has no chat template, or the template refuses the messages.
    """
    text = question + settings.suffix
    if not settings.chat_template:
        return text
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: set "
            "data.chat_template = false, or choose a model that has one"
        )
    messages = [{"role": "user", "content": text}]
    if settings.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": settings.system_prompt})
    variables: dict[str, Any] = {**settings.chat_template_kwargs}
    try:
        prompt = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **variables
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} cannot be applied: {error}; see "
            "data.system_prompt, data.chat_template_kwargs and data.chat_template"
        ) from error
    return cast(str, prompt)  # because of tokenize=False


def encode_prompt(
    prompt: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The token ids of what `build_prompt` returned.

    A chat template writes the beginning-of-sequence token itself, so the tokenizer adds its own
    only to a prompt without one.
    """
    return tuple(tokenizer.encode(prompt, add_special_tokens=not settings.chat_template))


class ControlTokens:
    """Finds the control tokens of a prompt that come from its question.

    A control token is one that the tokenizer marks as special or, since some tokenizers do not
    mark their role markers, an added token that the chat template writes.
    """

    def __init__(self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises what `build_prompt` raises."""
        frame = encode_prompt(build_prompt(_HARMLESS, settings, tokenizer), settings, tokenizer)
        # An unknown character controls nothing, unless its token ends or starts a sequence too.
        unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self._texts = {
            i: token.content
            for i, token in tokenizer.added_tokens_decoder.items()
            # Runs of blanks are added tokens of some tokenizers.
            if token.special or (i in frame and not token.content.isspace())
            if i not in unknown
        }
        self._frame = self._count(frame)

    def foreign(self, prompt_ids: tuple[int, ...]) -> str | None:
        """The text of a control token beyond those of template and tokenizer, if there is one."""
        return next((self._texts[i] for i in self._count(prompt_ids) - self._frame), None)

    def _count(self, ids: tuple[int, ...]) -> Counter[int]:
        return Counter(i for i in ids if i in self._texts)
