"""What speaks for an answer: how sure the model was of its tokens, or what a reward model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ttrl.report.confidence import Confidence
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.reward_models import Reduction, RewardModel, reduce
from ttrl.selection.candidates import Floats
from ttrl.selection.confidence import confidence
from ttrl.settings import Settings
from ttrl.types import Question, UserError


def certainties(group: RecordedGroup) -> Floats:
    """Return the mean certainty of each answer's tokens."""
    return np.array([known(answer).certainty for answer in group.answers])


def confidences(group: RecordedGroup, settings: Settings) -> Floats:
    """Return the DeepConf confidence of each answer."""
    return np.array([confidence(tokens_of(a), settings.selection) for a in group.answers])


def tokens_of(answer: RecordedAnswer) -> Sequence[float]:
    """Return the confidence of each token of an answer."""
    return known(answer).tokens


def rewards(
    group: RecordedGroup, model: RewardModel, questions: Mapping[str, Question], how: Reduction
) -> Floats:
    """Ask a reward model, and make one score of those of each solution's steps.

    Raises:
        UserError: if it gives no finite number for each solution.
    """
    question = questions[group.question]
    found = model.scores(question, [answer.text for answer in group.answers])
    scores = np.array([reduce(steps, how) for steps in found])
    if len(scores) != len(group.answers) or not np.isfinite(scores).all():
        raise UserError(
            f"--reward-model: expected a finite score for each of {len(group.answers)} solutions "
            f"of question {question.id!r}, got {scores.tolist()!r}"
        )
    return scores


def known(answer: RecordedAnswer) -> Confidence:
    """Return how sure the model was of an answer's tokens.

    Raises:
        UserError: if the answer does not say it.
    """
    if answer.confidence is None:
        raise UserError(
            "the answers do not say how sure the model was of their tokens: they were recorded "
            "without the likeliest tokens of each place, or sampled from a part of all tokens "
            "(top_p, min_p). Sample them with `ttrl eval --select self-certainty --save-samples "
            "FILE.jsonl --set evaluation.top_p=1.0`, or leave borda, self-certainty and deepconf "
            "out of --select"
        )
    return answer.confidence
