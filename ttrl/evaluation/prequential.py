"""Prequential figures of a stream: each question is scored before it may be learned from.

A step's votes are what is scored: they are sampled with the weights from before its update. Means
are over all questions of the stream that have a reference answer, and over the last third of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ttrl.answers import Grader
from ttrl.types import AnswerKey, CompletionGroup, Vote

KINDS = ("first", "majority")
"""The first sample, whose accuracy is pass@1, and the majority of all."""


class Prequential:
    """Keeps whether the answers of a stream were right, in its order, and what they have cost."""

    def __init__(self) -> None:
        """Begin before the first question."""
        self._right = {f"{when}{kind}": "" for when in ("", "adapted_") for kind in KINDS}
        self._questions = self._tokens = 0
        self._seconds = 0.0

    def score(
        self,
        groups: Sequence[CompletionGroup],
        votes: Sequence[Vote],
        key: AnswerKey,
        grader: Grader,
        *,
        adapted: bool = False,
    ) -> dict[str, float]:
        """Take note of a step's answers; return the figures of this step and of the stream so far.

        Args:
            groups: the answers to questions that are asked for the first time.
            votes: how they have voted.
            key: the answer key; a question that it lacks is counted, and not scored.
            grader: says which answers are right.
            adapted: whether they are those of a model that has been trained on these very
                questions: they are not prequential, and have names of their own.
        """
        when, here = "adapted_" if adapted else "", [""] * len(KINDS)
        for group, vote in zip(groups, votes, strict=True):
            if (reference := key.answers.get(group.question.id)) is not None:
                right = grader.agree((vote.answers_G[0], vote.majority), reference)
                here = [
                    seen + str(int(is_right)) for seen, is_right in zip(here, right, strict=True)
                ]
        self._questions += 0 if adapted else len(groups)
        metrics = {"stream/questions": float(self._questions)}
        if scored := len(self._right["first"]) + (0 if adapted else len(here[0])):
            metrics["stream/scored"] = float(scored)
        for kind, seen in zip(KINDS, here, strict=True):
            name = f"{when}{kind}"
            self._right[name] += seen
            if seen:
                metrics[f"stream/{name}_accuracy"] = accuracy(seen)
        return metrics | {f"stream/{name}": value for name, value in self._means(when).items()}

    def spend(self, tokens: float, seconds: float) -> dict[str, float]:
        """Add what a step has sampled and taken; return what a question has cost so far."""
        self._tokens += int(tokens)
        self._seconds += seconds
        return {
            "stream/tokens_per_question": self._tokens / max(1, self._questions),
            "time/per_question_s": self._seconds / max(1, self._questions),
        }

    def summary(self) -> dict[str, Any]:
        """Return the figures of the whole stream, as ``summary.json`` has them."""
        found = {**self._means(""), **self._means("adapted_")}
        asked = max(1, self._questions)
        return {
            "questions": self._questions,
            "scored": len(self._right["first"]),
            **found,
            "tokens_per_question": self._tokens / asked,
            "seconds_per_question": self._seconds / asked,
        }

    def state(self) -> dict[str, Any]:
        """Return what the next figures depend on, as JSON."""
        counted = {"questions": self._questions, "tokens": self._tokens, "seconds": self._seconds}
        return {"right": dict(self._right), **counted}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._right = dict(state["right"])
        self._questions, self._tokens = state["questions"], state["tokens"]
        self._seconds = state["seconds"]

    def _means(self, when: str) -> dict[str, float]:
        means = {}
        for kind in KINDS:
            name = f"{when}{kind}"
            if seen := self._right[name]:
                means[f"{name}_accuracy_mean"] = accuracy(seen)
                means[f"{name}_accuracy_last_third"] = accuracy(last_third(seen))
        return means


def accuracy(right: str) -> float:
    """Compute the share of right answers; a digit for each, "1" for right, "0" for wrong.

    Example: ``accuracy("1101") == 0.75``.
    """
    return right.count("1") / len(right)


def last_third(right: str) -> str:
    """Return the digits of the last third, which is rounded up."""
    return right[-math.ceil(len(right) / 3) :]
