"""From a question to the text and the tokens that the model reads.

A question is hostile text: it may spell a control token such as ``<|im_end|>``, which the
tokenizer would turn into the real one, and so end the user's turn and open another. Such a
question is refused (`ControlTokens`) rather than taken apart into harmless tokens: so the
prompt's text and its tokens always say the same, whichever of them a rollout engine is given.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import jinja2
import jinja2.meta

from ttrl.data.messages import SYSTEM, Messages
from ttrl.settings import DataSettings
from ttrl.settings.errors import did_you_mean
from ttrl.types import Question, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HARMLESS = "1 + 1"
_OTHERS = ("2 + 1", "1 + 2")
"""Other texts, in their first and in their last character: a template may trim or escape them."""


def build_prompt(
    question: str | Messages, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Put the question with its suffix in the tokenizer's chat template, if the settings say so.

    Messages need the template. If they begin with a system message of their own, it stands in the
    place of the settings'.

    Raises:
        UserError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not settings.chat_template:
        if not isinstance(question, str):
            raise UserError("a question in messages needs data.chat_template = true")
        return question + settings.suffix
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: set "
            "data.chat_template = false, or choose a model that has one"
        )
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else [*question]
    messages[-1] = {**messages[-1], "content": messages[-1]["content"] + settings.suffix}
    if settings.system_prompt is not None and messages[0]["role"] not in SYSTEM:
        messages.insert(0, {"role": "system", "content": settings.system_prompt})
    variables: dict[str, Any] = {**settings.chat_template_kwargs}
    try:
        prompt = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **variables
        )
    except Exception as error:  # a template is a program of its own: 1 / 0 may be in it
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} cannot be applied: {error}; see "
            "data.system_prompt, data.chat_template_kwargs and data.chat_template"
        ) from error
    return cast(str, prompt)  # because of tokenize=False


_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""A tag that transformers adds to the language of templates."""
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
_FUNCTIONS = {"raise_exception", "strftime_now", *jinja2.defaults.DEFAULT_NAMESPACE}


def refuse_unread_variables(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a UserError for a variable that the chat template does not read.

    jinja2 takes any, so a misspelt one would change nothing, in silence.
    """
    if not settings.chat_template_kwargs or not isinstance(tokenizer.chat_template, str):
        return
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        template = environment.parse(_GENERATION.sub("", tokenizer.chat_template))
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} cannot be read: {error}; see "
            "data.chat_template"
        ) from error
    read = jinja2.meta.find_undeclared_variables(template)
    known = sorted(read - _GIVEN - _FUNCTIONS - tokenizer.special_tokens_map.keys())
    for name in settings.chat_template_kwargs:
        if name not in read:
            raise UserError(
                f"data.chat_template_kwargs: the chat template of {tokenizer.name_or_path!r} does "
                f"not read {name!r}{did_you_mean(name, known)}, so it would change nothing; it "
                f"reads {', '.join(known) or 'no variables'}"
            )


def encode_prompt(
    prompt: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Return the token ids of what `build_prompt` returned.

    A chat template writes the beginning-of-sequence token itself, so the tokenizer adds its own
    only to a prompt without one.
    """
    return tuple(tokenizer.encode(prompt, add_special_tokens=not settings.chat_template))


def make_question(
    id: str, text: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> Question:
    """Make a question of a text: its prompt, and the token ids of that."""
    prompt = build_prompt(text, settings, tokenizer)
    return Question(id, prompt, encode_prompt(prompt, settings, tokenizer), text)


class ControlTokens:
    """Finds the control tokens of a prompt that come from its question.

    A control token is one that the tokenizer marks as special or, since some tokenizers do not
    mark their role markers, an added token that the chat template writes.
    """

    def __init__(self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Apply the chat template once; raise what `build_prompt` raises.

        So does a template that does not show a whole text, as of one for parts of a message.
        """
        self._settings, self._tokenizer = settings, tokenizer
        # An unknown character controls nothing, unless its token ends or starts a sequence too.
        self._unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self._frames: dict[tuple[str, ...], tuple[dict[int, str], Counter[int]]] = {}
        prompt = build_prompt(_HARMLESS, settings, tokenizer)
        if prompt in [build_prompt(other, settings, tokenizer) for other in _OTHERS]:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} leaves the question out, or a "
                "part of it: other questions have the same prompt; set data.chat_template = false, "
                "or put the template that belongs to the model in its folder"
            )
        self._frame(("user",))

    def foreign(self, question: str | Messages, prompt_ids: tuple[int, ...]) -> str | None:
        """Return a control token's text beyond those of template and tokenizer, or None."""
        roles = ("user",) if isinstance(question, str) else tuple(m["role"] for m in question)
        texts, frame = self._frame(roles)
        found = Counter(i for i in prompt_ids if i in texts)
        return next((texts[i] for i in found - frame), None)

    def harmless(self, text: str) -> str:
        """Return a model's text without what spells a control token, or cannot be encoded.

        Of each spelling the first character is followed by a blank. `foreign` says whether that was
        enough: a tokenizer may know further ones.
        """
        texts, _ = self._frame(("user",))
        text = text.encode("utf-8", "replace").decode().replace("\0", "")
        for token in sorted(texts.values(), key=len, reverse=True):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _frame(self, roles: tuple[str, ...]) -> tuple[dict[int, str], Counter[int]]:
        """Return the control tokens, and how many of each come with harmless messages."""
        if roles not in self._frames:
            tokenizer = self._tokenizer
            harmless = [{"role": role, "content": _HARMLESS} for role in roles]
            question = _HARMLESS if roles == ("user",) else harmless
            prompt = build_prompt(question, self._settings, tokenizer)
            ids = encode_prompt(prompt, self._settings, tokenizer)
            texts = {
                i: token.content
                for i, token in tokenizer.added_tokens_decoder.items()
                # Runs of blanks are added tokens of some tokenizers.
                if token.special or (i in ids and not token.content.isspace())
                if i not in self._unknown
            }
            self._frames[roles] = texts, Counter(i for i in ids if i in texts)
        return self._frames[roles]
