"""From raw rows to questions for training and, apart from them, the answer key.

A row that cannot be used is rejected with its place and a reason, and the others survive; only
when too many are rejected does loading stop. Training code receives `QuestionSet.questions`
alone, which hold no answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttrl.config import DataSettings
from ttrl.data.prompts import ControlTokens, build_prompt, encode_prompt
from ttrl.data.rows import Rejection, Row, read_rows
from ttrl.types import AnswerKey, Question, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_REJECTIONS = 3


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A data set, checked and tokenized, with the labels kept apart."""

    questions: tuple[Question, ...]
    """In the order of the source; all that training may see."""
    key: AnswerKey
    """For evaluation and metrics only."""
    rejected: tuple[Rejection, ...]
    """Rows that were left out, then answers and levels that were, in the order of the source."""


def load_questions(
    source: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> QuestionSet:
    """Read, check and tokenize a data set.

    Args:
        source: ``settings.train`` or ``settings.held_out``; see `ttrl.data.rows.read_rows`.
        settings: field names, prompt form, and the limits.
        tokenizer: the policy's.

    Raises:
        UserError: the source cannot be read, holds no usable row, or a larger share of its rows
            than ``settings.max_rejected_share`` is rejected; or the chat template does not work.
    """
    control = ControlTokens(settings, tokenizer)
    questions: dict[str, Question] = {}
    answers: dict[str, str] = {}
    levels: dict[str, str] = {}
    rejected: list[Rejection] = []
    ignored: list[Rejection] = []
    for row in read_rows(source, settings):
        if isinstance(row, Rejection):
            rejected.append(row)
            continue
        try:
            fields = _fields(row)
            question = _question(row, fields, settings, tokenizer, control)
            if question.id in questions:
                raise _BadRow(f"duplicate id {question.id!r}")
        except _BadRow as error:
            rejected.append(Rejection(source, row.place, str(error)))
            continue
        questions[question.id] = question
        # What is wrong with a label must not decide what is trained on: the question stays.
        for name, key in ((settings.answer_field, answers), (settings.level_field, levels)):
            try:
                value = _optional_text(fields, name)
            except _BadRow as error:
                ignored.append(Rejection(source, row.place, f"{error}; question kept without it"))
                continue
            if value is not None:
                key[question.id] = value
    _check_share(source, len(questions), rejected, settings.max_rejected_share)
    return QuestionSet(tuple(questions.values()), AnswerKey(answers, levels), (*rejected, *ignored))


def overlap(train: QuestionSet, held_out: QuestionSet) -> tuple[str, ...]:
    """Ids of the held-out questions whose prompt is also trained on."""
    trained = {question.prompt for question in train.questions}
    return tuple(question.id for question in held_out.questions if question.prompt in trained)


# ---------------------------------------------------------------------------------------------
# One row


class _BadRow(Exception):
    """The row cannot be used; the message is the reason."""


def _fields(row: Row) -> dict[str, Any]:
    if not isinstance(row.value, dict):
        raise _BadRow(f"expected an object, got {_short(row.value)}")
    return row.value


def _question(
    row: Row,
    fields: dict[str, Any],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    control: ControlTokens,
) -> Question:
    name = settings.prompt_field
    if name not in fields:
        raise _BadRow(
            f"no field {name!r} (data.prompt_field); its fields are {_short(list(fields))}"
        )
    text = fields[name]
    if not isinstance(text, str):
        raise _BadRow(f"field {name!r} must be text, got {_short(text)}")
    if not text.strip():
        raise _BadRow(f"field {name!r} is empty")
    _check_characters(name, text)
    prompt = build_prompt(text, settings, tokenizer)
    prompt_ids = encode_prompt(prompt, settings, tokenizer)
    if not prompt_ids:
        raise _BadRow("the tokenizer makes no tokens of it")
    if len(prompt_ids) > settings.max_prompt_tokens:
        raise _BadRow(
            f"the prompt has {len(prompt_ids)} tokens, more than data.max_prompt_tokens = "
            f"{settings.max_prompt_tokens}"
        )
    if (token := control.foreign(prompt_ids)) is not None:
        raise _BadRow(f"field {name!r} holds the model's control token {token!r}")
    return Question(_id(row, fields, settings.id_field), prompt, prompt_ids)


def _id(row: Row, fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None or value == "":
        return row.place.replace(" ", "-")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadRow(f"field {name!r} must be text or a whole number, got {_short(value)}")
    _check_characters(name, str(value))
    return str(value)


def _optional_text(fields: dict[str, Any], name: str) -> str | None:
    """A text field, or a number as text; None where it is absent, null or blank."""
    value = fields.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and not (isinstance(value, float) and not math.isfinite(value))
    if not number and not isinstance(value, str):
        raise _BadRow(f"field {name!r} must be text or a number, got {_short(value)}")
    _check_characters(name, str(value))
    return str(value) if str(value).strip() else None


def _check_characters(name: str, text: str) -> None:
    """Refuse what cannot be tokenized, or written to a UTF-8 file."""
    if "\0" in text:
        raise _BadRow(f"field {name!r} holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadRow(f"field {name!r} holds half of a surrogate pair") from error


def _short(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text


def _check_share(source: str, kept: int, rejected: list[Rejection], allowed: float) -> None:
    total = kept + len(rejected)
    if total == 0:
        raise UserError(f"{source} holds no rows")
    if kept and len(rejected) <= allowed * total:
        return
    shown = "; ".join(str(rejection) for rejection in rejected[:SHOWN_REJECTIONS])
    more = f"; and {len(rejected) - SHOWN_REJECTIONS} more" * (len(rejected) > SHOWN_REJECTIONS)
    advice = f"correct them, or raise data.max_rejected_share = {allowed:g}"
    raise UserError(
        f"{len(rejected)} of {total} rows rejected: {shown}{more}"
        f"{f'; {advice}' if kept else '; no usable row is left'}"
    )
