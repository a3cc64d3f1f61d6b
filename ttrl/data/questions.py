"""From raw rows to questions for training and, apart from them, the answer key.

A row that cannot be used is rejected with its place and a reason, and the others survive; only
when too many are rejected does loading stop. Training code receives `QuestionSet.questions`
alone, which hold no answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ttrl.data.messages import Messages, read_messages
from ttrl.data.prompts import (
    ControlTokens,
    build_prompt,
    encode_prompt,
    refuse_unread_variables,
)
from ttrl.data.references import READ_FROM, read_reference, solutions
from ttrl.data.rows import BadRow, Rejection, Row, Spelled, decimal, read_rows
from ttrl.settings import DataSettings
from ttrl.types import AnswerKey, Question, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_REJECTIONS = 3


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A data set, checked and tokenized, with the labels kept apart."""

    questions: tuple[Question, ...]
    """The questions in the order of the source; all that training may see."""
    key: AnswerKey
    """Reference answers, for evaluation and metrics only."""
    rejected: tuple[Rejection, ...]
    """Rows that were left out, then answers and levels that were, in the order of the source."""
    remarks: tuple[str, ...] = ()
    """What else the user should know before training, a line each."""


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
            than ``settings.max_rejected_share`` is rejected; or the chat template does not work,
            or does not read a variable that it is given.
    """
    reader = QuestionReader(settings, tokenizer)
    questions: dict[str, Question] = {}
    answers: dict[str, str] = {}
    levels: dict[str, str] = {}
    written: dict[str, str] = {}  # answers as the source has them
    rejected: list[Rejection] = []
    ignored: list[Rejection] = []
    for row in read_rows(source, settings):
        if isinstance(row, Rejection):
            rejected.append(row)
            continue
        try:
            read = reader.read(row)
            if read.question.id in questions:
                raise BadRow(f"duplicate id {read.question.id!r}")
        except BadRow as error:
            rejected.append(Rejection(source, row.place, str(error)))
            continue
        name = read.question.id
        questions[name] = read.question
        ignored += [Rejection(source, row.place, remark) for remark in read.remarks]
        if read.answer is not None:
            answers[name], written[name] = read.answer, read.written or ""
        if read.level is not None:
            levels[name] = read.level
    _check_share(source, len(questions), rejected, settings.max_rejected_share)
    remarks = (*_duplicates(source, questions.values()), *solutions(source, written, answers))
    key = AnswerKey(answers, levels)
    return QuestionSet(tuple(questions.values()), key, (*rejected, *ignored), remarks)


@dataclass(frozen=True, slots=True)
class ReadQuestion:
    """A row that can be asked, with its labels apart from the question."""

    question: Question
    """All that training may see."""
    answer: str | None = None
    """Reference answer, for metrics only; None: the row has none."""
    level: str | None = None
    """Difficulty level; None: the row has none."""
    written: str | None = None
    """The answer as the row has it, which may be a whole solution."""
    remarks: tuple[str, ...] = ()
    """Labels that were left out, each with the reason."""
    is_named: bool = True
    """Whether the row has an id; else the question is called by its place."""


class QuestionReader:
    """Makes questions of rows, one by one."""

    def __init__(self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Apply the chat template once.

        Raises:
            UserError: if it does not work, or does not read a variable that it is given.
        """
        refuse_unread_variables(settings, tokenizer)
        self.settings, self.tokenizer = settings, tokenizer
        self._control = ControlTokens(settings, tokenizer)

    def read(self, row: Row) -> ReadQuestion:
        """Check and tokenize a row.

        Raises:
            BadRow: if it cannot be asked. What is wrong with a label is no reason: it must not
                decide what is trained on, so the question stays without it.
        """
        settings = self.settings
        fields = _fields(row, settings)
        question = _question(row, fields, settings, self.tokenizer, self._control)
        answer, level, written = None, None, None
        remarks: list[str] = []
        try:
            if (written := _optional_text(fields, settings.answer_field)) is not None:
                answer = _reference(settings.answer_field, written)
        except BadRow as error:
            remarks.append(f"{error}; question kept without it")
        try:
            level = _optional_text(fields, settings.level_field)
        except BadRow as error:
            remarks.append(f"{error}; question kept without it")
        is_named = not _is_blank(_field(fields, settings.id_field))
        return ReadQuestion(question, answer, level, written, tuple(remarks), is_named)


def load_references(source: str, settings: DataSettings) -> dict[str, str]:
    """Read the reference answers by question, without a tokenizer and so in a moment.

    They are those of `load_questions`, and of rows that it rejects for their prompts, which are
    not asked. Where an id is there twice it depends on the prompts which row is asked, and there
    is no reference.

    Raises:
        UserError: if the source cannot be read.
    """
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for row in read_rows(source, settings):
        if isinstance(row, Rejection):
            continue
        with suppress(BadRow):
            fields = _fields(row, settings)
            name = _id(row, fields, settings.id_field)
            seen[name] += 1
            if (answer := reference_of(row, settings)) is not None:
                found[name] = answer
    return {name: answer for name, answer in found.items() if seen[name] == 1}


def reference_of(row: Row, settings: DataSettings) -> str | None:
    """Read the reference answer of a row; None: it has none.

    Raises:
        BadRow: if it cannot be read.
    """
    value = _optional_text(_fields(row, settings), settings.answer_field)
    return None if value is None else _reference(settings.answer_field, value)


def overlap(train: Iterable[Question], held_out: QuestionSet) -> tuple[str, ...]:
    """Return the ids of the held-out questions whose prompt is also trained on."""
    trained = {question.prompt for question in train}
    return tuple(question.id for question in held_out.questions if question.prompt in trained)


# ---------------------------------------------------------------------------------------------
# One row


_ABSENT = object()
LIKELY = ("prompt", "messages", "question", "problem", "input", "instruction", "query", "text")
"""Names of fields that hold questions in public data sets."""


def _fields(row: Row, settings: DataSettings) -> dict[str, Any]:
    if isinstance(row.value, str):
        return {settings.prompt_field: row.value}
    if not isinstance(row.value, dict):
        raise BadRow(f"expected an object or a question's text, got {_short(row.value)}")
    return row.value


def _field(fields: dict[str, Any], name: str) -> Any:
    """Return a field's value; `_ABSENT` if there is none.

    "reward_model.ground_truth" is a field inside another, "messages.-1.content" one of the last
    in a list.
    """
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if isinstance(value, list) and part.removeprefix("-").isdecimal():
            value = dict(zip(range(-len(value), len(value)), value * 2, strict=True))
            value = value.get(int(part), _ABSENT)
        else:
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _question(
    row: Row,
    fields: dict[str, Any],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    control: ControlTokens,
) -> Question:
    name = settings.prompt_field
    value = _field(fields, name)
    if value is _ABSENT:
        likely = [f"data.prompt_field={field}" for field in LIKELY if field in fields]
        raise BadRow(
            f"no field {name!r} (data.prompt_field)"
            f"{f': --set {likely[0]}?' if likely else ''}; its fields are {_short(list(fields))}"
        )
    question: str | Messages
    if isinstance(value, list):
        question = read_messages(name, value)
        texts = [message["content"] for message in question]
        if not settings.chat_template:
            raise BadRow(f"field {name!r} holds messages, which need data.chat_template = true")
    elif isinstance(value, str):
        question, texts = value, [value]
    else:
        raise BadRow(
            f"field {name!r} must be text or a list of messages with role and content, got "
            f"{_short(value)}"
        )
    if not texts[-1].strip():
        raise BadRow(f"field {name!r} is empty")
    for text in texts:
        _check_characters(name, text)
    try:
        prompt = build_prompt(question, settings, tokenizer)
    except UserError as error:  # the template takes a user's message, but not these
        raise BadRow(str(error)) from error
    prompt_ids = encode_prompt(prompt, settings, tokenizer)
    if not prompt_ids:
        raise BadRow("the tokenizer makes no tokens of it")
    if len(prompt_ids) > settings.max_prompt_tokens:
        raise BadRow(
            f"the prompt has {len(prompt_ids)} tokens, more than data.max_prompt_tokens = "
            f"{settings.max_prompt_tokens}"
        )
    if (token := control.foreign(question, prompt_ids)) is not None:
        raise BadRow(f"field {name!r} holds the model's control token {token!r}")
    own = question if isinstance(question, str) else _only_text(question)
    return Question(_id(row, fields, settings.id_field), prompt, prompt_ids, own)


def _only_text(messages: Messages) -> str | None:
    return messages[0]["content"] if len(messages) == 1 else None


def _id(row: Row, fields: dict[str, Any], name: str) -> str:
    value = _field(fields, name)
    if _is_blank(value):
        return row.place.replace(" ", "-")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"field {name!r} must be text or a whole number, got {_short(value)}")
    _check_characters(name, str(value))
    return str(value)


def _is_blank(value: Any) -> bool:
    return value is _ABSENT or value is None or value == ""


def _optional_text(fields: dict[str, Any], name: str) -> str | None:
    """Return a text field, or a number as text; None where it is absent, null or blank."""
    value = _field(fields, name)
    if value is _ABSENT or value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size
    number = whole or (isinstance(value, float | Decimal) and math.isfinite(value))
    if not isinstance(value, str) and not number:
        raise BadRow(f"field {name!r} must be text or a number, got {_short(value)}")
    text = str(value)
    if isinstance(value, Decimal):
        text = f"{value:f}"
    elif isinstance(value, float) and not isinstance(value, Spelled):
        text = decimal(value)
    _check_characters(name, text)
    return text if text.strip() else None


def _reference(name: str, text: str) -> str:
    answer = read_reference(text)
    if answer is None:
        raise BadRow(f"field {name!r} gives several answers ({READ_FROM}): {_short(text)}")
    return answer


def _check_characters(name: str, text: str) -> None:
    """Refuse what cannot be tokenized, or written to a UTF-8 file."""
    if "\0" in text:
        raise BadRow(f"field {name!r} holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"field {name!r} holds half of a surrogate pair") from error


def _short(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text


# ---------------------------------------------------------------------------------------------
# All rows


def _duplicates(source: str, questions: Iterable[Question]) -> list[str]:
    first: dict[str, str] = {}
    again = [(q.id, first[q.prompt]) for q in questions if first.setdefault(q.prompt, q.id) != q.id]
    if not again:
        return []
    return [
        f"warning: {source}: {len(again)} questions are there more than once, for example "
        f"{again[0][0]!r} is {again[0][1]!r} again; all are asked"
    ]


def _check_share(source: str, kept: int, rejected: list[Rejection], allowed: float) -> None:
    total = kept + len(rejected)
    if total == 0:
        raise UserError(f"{source} holds no rows")
    if kept and len(rejected) <= allowed * total:
        return
    reasons = Counter(rejection.reason for rejection in rejected)
    first = {rejection.reason: rejection for rejection in reversed(rejected)}
    shown = "; ".join(
        f"{first[reason]}{f' (and {count - 1} more rows)' if count > 1 else ''}"
        for reason, count in list(reasons.items())[:SHOWN_REJECTIONS]
    )
    more = f"; and {len(reasons) - SHOWN_REJECTIONS} more reasons" * (
        len(reasons) > SHOWN_REJECTIONS
    )
    advice = f"correct them, or raise data.max_rejected_share = {allowed:g}"
    raise UserError(
        f"{len(rejected)} of {total} rows rejected: {shown}{more}"
        f"{f'; {advice}' if kept else '; no usable row is left'}"
    )
