"""Sources of questions, one file per kind; those that are no list are registered here by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ttrl.data.questions import load_questions
from ttrl.data.rows import refuse_no_file
from ttrl.data.sources.base import ArrivingSource, QuestionSource, Source
from ttrl.data.sources.question_list import QuestionList
from ttrl.data.sources.sums import sums
from ttrl.settings import DataSettings, Settings
from ttrl.settings.data import NOTHING
from ttrl.types import Question, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "SOURCES",
    "ArrivingSource",
    "QuestionList",
    "QuestionSource",
    "Source",
    "make_source",
    "refuse_absent",
]

SOURCES: dict[str, Callable[[Settings, PreTrainedTokenizerBase], Source]] = {
    "arithmetic:stream": sums,
}
"""Functions that make the source that ``data.train`` names, where that is no list."""

FEWEST_COMPARED = 8
"""Steps, at least, that guards compare where ``data.ids`` names few questions, or a run ends by its
votes: over a vote or two, labels that change are no collapse."""


def refuse_absent(data: DataSettings) -> None:
    """Raise a UserError for a file of questions that is not there, before anything is loaded."""
    listed = (data.held_out,) if data.source == "stream" else (data.train, data.held_out)
    for source in listed:
        if source is not None and source not in (*SOURCES, NOTHING):
            refuse_no_file(source)


def make_source(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Source:
    """Make the source that ``data.train`` names: one of `SOURCES`, or a list that is loaded.

    Raises:
        UserError: see `load_questions` and `QuestionList`; or if a step already asks all there is,
            and ``rollout.resample_rounds`` wants more.
    """
    per_step, rounds = settings.rollout.questions_per_step, settings.rollout.resample_rounds
    if settings.data.source != "list":
        raise UserError(
            f'data.source = "{settings.data.source}" is for ttrl train: here all questions must be '
            'there when it begins; set data.source = "list", and name a file of them in data.train'
        )
    if settings.data.train in SOURCES:
        for name, needs_a_list in (
            ("data.ids", settings.data.ids),
            ("stopping.by_votes", settings.stopping.by_votes),
        ):
            if needs_a_list:
                raise UserError(
                    f"{name} needs a list of questions, and data.train = {settings.data.train!r} "
                    f"is none: name a file, or unset {name}"
                )
        return SOURCES[settings.data.train](settings, tokenizer)
    loaded = load_questions(settings.data.train, settings.data, tokenizer)
    asked = loaded.questions
    if settings.data.ids:
        asked = picked(asked, settings.data)
    if rounds and len(asked) == per_step:
        raise UserError(
            f"rollout.resample_rounds = {rounds} has nothing to ask: each step asks all {per_step} "
            "questions of data.train; set it to 0, or lower rollout.questions_per_step"
        )
    is_steady = settings.data.ids or settings.stopping.by_votes
    compared = FEWEST_COMPARED if is_steady else 1
    return QuestionList(asked, per_step, settings.seed, settings.epochs, compared), loaded


def picked(questions: Sequence[Question], data: DataSettings) -> tuple[Question, ...]:
    """Return the questions that ``data.ids`` names, in its order.

    Raises:
        UserError: for ids that no question has, with those that are most like them.
    """
    by_id = {question.id: question for question in questions}
    if missing := [name for name in data.ids if name not in by_id]:
        like = get_close_matches(missing[0], by_id, 3, 0.0)
        raise UserError(
            f"data.ids: {missing} are no ids of the {len(by_id)} questions of data.train = "
            f"{data.train!r}; those most like {missing[0]!r}: {like}; rows without a field "
            f"{data.id_field!r} (data.id_field) are named by their place"
        )
    return tuple(by_id[name] for name in data.ids)
