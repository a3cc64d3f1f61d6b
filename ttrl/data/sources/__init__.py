"""Sources of questions, one file per kind; those that are no list are registered here by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ttrl.data.questions import load_questions
from ttrl.data.rows import refuse_no_file
from ttrl.data.sources.base import QuestionSource, Source
from ttrl.data.sources.question_list import QuestionList
from ttrl.data.sources.sums import sums
from ttrl.settings import DataSettings, Settings
from ttrl.settings.data import NOTHING
from ttrl.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SOURCES", "QuestionList", "QuestionSource", "Source", "make_source", "refuse_absent"]

SOURCES: dict[str, Callable[[Settings, PreTrainedTokenizerBase], Source]] = {
    "arithmetic:stream": sums,
}
"""Functions that make the source that ``data.train`` names, where that is no list."""


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
        return SOURCES[settings.data.train](settings, tokenizer)
    loaded = load_questions(settings.data.train, settings.data, tokenizer)
    if rounds and len(loaded.questions) == per_step:
        raise UserError(
            f"rollout.resample_rounds = {rounds} has nothing to ask: each step asks all {per_step} "
            "questions of data.train; set it to 0, or lower rollout.questions_per_step"
        )
    return QuestionList(loaded.questions, per_step, settings.seed, settings.epochs), loaded
