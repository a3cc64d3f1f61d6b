"""Measuring a policy against an answer key: pass@k and maj@k."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ttrl.answers import (
    Extractor,
    Grader,
    default_grader,
    extract_answer,
)
from ttrl.data.questions import QuestionSet
from ttrl.evaluation.metrics import maj_at_k, pass_at_k
from ttrl.report.display import Display
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.types import AnswerKey, Completion, CompletionGroup, FinishReason, Question

Scores = dict[str, float]


def evaluate(
    pool: RolloutPool,
    questions: Sequence[Question],
    key: AnswerKey,
    params: SamplingParams,
    ks: Iterable[int],
    on_group: Callable[[CompletionGroup], None] = lambda group: None,
    extract: Extractor = extract_answer,
    grader: Grader | None = None,
) -> Scores:
    """Sample every question that the key has an answer to, and score the samples.

    Args:
        pool: at the weights to be measured.
        questions: what to ask.
        key: the reference answers.
        params: how to sample; ``params.n`` answers per question.
        ks: report pass@k and maj@k for these, each at most ``params.n``.
        on_group: called with each group as it completes.
        extract: from a completion's text to its answer.
        grader: says which answers are equivalent; None: one with the default settings.

    Returns:
        Means over questions, fractions of 1: "pass@k" (Chen et al., arXiv 2107.03374; pass@1 is
        the mean accuracy), "maj@k" for k > 1, "abstention_share", "truncated_share", the mean
        number of "response_tokens"; and the same again per level as "pass@1/level=3" ... Empty
        if the key answers none of the questions.
    """
    grader = grader or default_grader()
    asked = [q for q in questions if q.id in key.answers]
    groups = pool.sample(asked, params, on_group)
    scores = {
        g.question.id: _score(
            [extract(c.text) for c in g.completions],
            g.completions,
            key.answers[g.question.id],
            sorted(set(ks)),
            grader,
        )
        for g in groups
    }
    levels: dict[str, list[Scores]] = {}
    for question_id, score in scores.items():
        if question_id in key.levels:
            levels.setdefault(key.levels[question_id], []).append(score)
    result = _means(list(scores.values()))
    for level in sorted(levels):
        result |= {f"{name}/level={level}": v for name, v in _means(levels[level]).items()}
    return result


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A set of questions, sampled in the same way whenever it is run."""

    settings: Settings
    """The settings, whose ``evaluation`` section says how to sample."""
    extract: Extractor
    """Function of a completion's text to its answer."""
    grader: Grader
    """The grader, which says which answers are equivalent."""
    name: str
    """Name in the progress bar, and part of what the random numbers are derived from."""
    asked: QuestionSet
    """The questions and their answer key."""
    ks: tuple[int, ...]
    """Values of k for pass@k and maj@k."""

    def run(
        self,
        pool: RolloutPool,
        step: int,
        display: Display,
        on_group: Callable[[CompletionGroup], None] = lambda group: None,
    ) -> Scores:
        """Score the pool's present weights; empty if there is no answer key."""
        evaluation = self.settings.evaluation
        params = SamplingParams(
            n=evaluation.samples,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            max_new_tokens=self.settings.rollout.max_new_tokens,
            stop=self.settings.rollout.stop,
            stream=(
                self.settings.seed,
                "exam",
                self.name,
                step,
            ),  # kept, so that measurements sample as before
        )
        total = sum(q.id in self.asked.key.answers for q in self.asked.questions)
        with display.bar(f"measuring: {self.name}", total) as bar:

            def done(group: CompletionGroup) -> None:
                on_group(group)
                bar.advance()

            return evaluate(
                pool,
                self.asked.questions,
                self.asked.key,
                params,
                self.ks,
                on_group=done,
                extract=self.extract,
                grader=self.grader,
            )


class Measured:
    """What the evaluations of a run have found before training, and last."""

    def __init__(self) -> None:
        """Nothing has been measured."""
        self.before: dict[str, Scores] = {}
        """By the evaluation's name."""
        self.after: dict[str, Scores] = {}

    def summary(self) -> dict[str, Any]:
        """Return the scores as ``summary.json`` has them."""
        before, after = self.before, self.after
        return {
            "before": before.get("train", {}),
            "after": after.get("train", {}),
            "held_out": {"before": before.get("held_out", {}), "after": after.get("held_out", {})},
        }

    def state(self) -> dict[str, dict[str, Scores]]:
        """Return both, as JSON."""
        return {"before": self.before, "after": self.after}

    def load_state(self, state: Mapping[str, Mapping[str, Scores]]) -> None:
        """Go on from a `state`."""
        self.before, self.after = (
            {name: dict(scores) for name, scores in state[when].items()}
            for when in ("before", "after")
        )


def _score(
    answers: Sequence[str | None],
    completions: Sequence[Completion],
    reference: str,
    ks: Sequence[int],
    grader: Grader,
) -> Scores:
    """Compute the scores of one question."""
    n, correct = len(answers), sum(grader.agree(answers, reference))
    truncated = [c.finish_reason is FinishReason.LENGTH for c in completions]
    return {
        **{f"pass@{k}": pass_at_k(n, correct, k) for k in ks},
        **{f"maj@{k}": maj_at_k(answers, reference, k, grader) for k in ks if k > 1},
        "abstention_share": answers.count(None) / n,
        "truncated_share": fmean(truncated),
        "response_tokens": fmean(len(c.token_ids) for c in completions),
    }


def _means(scores: Sequence[Scores]) -> Scores:
    return {name: fmean(s[name] for s in scores) for name in scores[0]} if scores else {}
