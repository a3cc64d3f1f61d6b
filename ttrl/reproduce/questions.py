"""What must be known of an experiment's questions before its first stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttrl.build import total_steps
from ttrl.data.questions import load_questions
from ttrl.data.sources import make_source
from ttrl.models.pretrained import load_tokenizer
from ttrl.reproduce.experiment import READING, DataSet
from ttrl.settings import Settings
from ttrl.types import UserError

POINTS = 6
"""Measurements in a run, after the one before training, where the recipe has none: for curves."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the questions, and nothing that is in an answer key."""

    steps: int
    """Steps of a run."""
    answers: bool
    """Whether there are reference answers to the questions that are trained on."""

    @property
    def measured_every(self) -> int:
        """The steps between measurements."""
        return math.ceil(self.steps / POINTS)


def look_at(settings: Settings, others: Sequence[DataSet]) -> Known:
    """Read all questions, so that what is wrong with them is said before anything is trained.

    Raises:
        UserError: if some cannot be read, there is nothing to measure, or a data set out of domain
            has no answers.
    """
    tokenizer = load_tokenizer(settings.model)
    source, trained = make_source(settings, tokenizer)
    for other in others:
        reading = {k.removeprefix("data."): v for k, v in other.settings.items() if k in READING}
        asked = load_questions(other.path, settings.data.model_copy(update=reading), tokenizer)
        if not asked.key.answers:
            raise UserError(f"--ood {other.name}: no row has an answer to measure against")
    held_out = settings.data.held_out
    held_out_answers = held_out is not None and bool(
        load_questions(held_out, settings.data.as_held_out(), tokenizer).key.answers
    )
    if not (trained.key.answers or held_out_answers or others):
        raise UserError(
            f"there is nothing to measure: data.train = {settings.data.train!r} has no reference "
            "answers; set data.held_out, or name questions that have some with --ood"
        )
    steps = total_steps(settings, source)
    assert steps is not None  # only a stream has no end, and `make_source` refuses one
    return Known(steps, bool(trained.key.answers))
