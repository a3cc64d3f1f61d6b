"""Measuring a policy against an answer key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttrl.answers import Extractor, Grader
from ttrl.data.questions import QuestionSet
from ttrl.evaluation.scoring import score_groups
from ttrl.report.display import Display
from ttrl.report.results import EvaluationResult, Scores
from ttrl.report.rollouts import RecordedGroup
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.workflows import Conversation
from ttrl.rollout.workflows.checks import later_prompts
from ttrl.settings import Settings
from ttrl.types import CompletionGroup, Question


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
    """Name in the progress bar. Where it is a path, its last part is in what the random numbers are
    derived from: the same file is sampled alike wherever it lies."""
    asked: QuestionSet
    """The questions and their answer key."""
    ks: tuple[int, ...]
    """Values of k for pass@k and maj@k."""
    conversation: Conversation | None = None
    """What ``rollout.workflow`` is measured by besides; None: each answer is by itself."""
    noted: int = 0
    """How many of the likeliest tokens of each place are noted with the samples."""

    def run(
        self,
        pool: RolloutPool,
        step: int,
        display: Display,
        on_group: Callable[[CompletionGroup], None] = lambda group: None,
    ) -> EvaluationResult:
        """Sample from the pool's present weights, and score; without a question if no key."""
        return self.score(self.sample(pool, step, display, on_group), step)

    def sample(
        self,
        pool: RolloutPool,
        step: int,
        display: Display,
        on_group: Callable[[CompletionGroup], None] = lambda group: None,
    ) -> list[RecordedGroup]:
        """Sample every question that the key has an answer to; all ranks together."""
        params = self.sampling(step)
        asked = self.answerable
        if not asked:
            return []
        greedy: dict[str, RecordedGroup] = {}
        with display.bar(f"measuring: {self.name}", len(asked)) as bar:
            if (
                self.settings.evaluation.greedy
            ):  # first: what is expected of lengths is the samples'
                most_probable = replace(params, n=1, temperature=0.0, top_p=1.0, top_logprobs=0)
                groups = pool.sample(asked, most_probable)
                greedy = {g.question.id: RecordedGroup.of(g) for g in groups}

            def done(group: CompletionGroup) -> None:
                on_group(group)
                bar.advance()

            groups = pool.sample(asked, params, done)
        sampled = list(map(RecordedGroup.of, self._with_turns(groups, pool, params, display)))
        return [replace(g, greedy=greedy[g.question].answers[0]) if greedy else g for g in sampled]

    def _with_turns(
        self,
        groups: Sequence[CompletionGroup],
        pool: RolloutPool,
        params: SamplingParams,
        display: Display,
    ) -> Sequence[CompletionGroup]:
        """Add the answers of conversations, with random numbers of their own.

        There are no more of them than of single answers, or those of one conversation.
        """
        held = self.conversation
        if held is None:
            return groups
        count = max(1, params.n // held.calls)
        asked = [group.question for group in groups]
        own = replace(
            params, n=count * held.calls, top_logprobs=0, stream=(*params.stream, "turns")
        )
        with display.bar(f"measuring: {self.name}, in turns", len(asked)) as bar:
            found = held.converse(pool.sample, asked, own, lambda group: bar.advance())
        pool.forget(later_prompts(found))
        return [
            replace(group, completions=group.completions + more.completions)
            for group, more in zip(groups, found, strict=True)
        ]

    def score(
        self,
        groups: Sequence[RecordedGroup],
        step: int | None,
        *,
        model: str | None = None,
        sampling: Mapping[str, float] | None = None,
    ) -> EvaluationResult:
        """Score answers to the questions.

        Args:
            groups: the answers.
            step: training step that they are of; None: they are of no run's.
            model: what to call their model; None: ``model.path``.
            sampling: how they were sampled, see `EvaluationResult`; None: as `sample` does.
        """
        scored = score_groups(
            groups, self.asked.key, self.ks, self.extract, self.grader, self.settings
        )
        return EvaluationResult(
            model=self.settings.model.path if model is None else model,
            data=self.name,
            sampling=self.how if sampling is None else sampling,
            questions=scored,
            step=step,
        )

    @property
    def answerable(self) -> list[Question]:
        """The questions that the key has an answer to."""
        return [q for q in self.asked.questions if q.id in self.asked.key.answers]

    @property
    def how(self) -> dict[str, float]:
        """How the answers are sampled, as an `EvaluationResult` says it."""
        evaluation = self.settings.evaluation
        return {
            "samples": evaluation.samples,
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "max_new_tokens": self.settings.rollout.max_new_tokens,
            "seed": self.settings.seed,
        }

    def sampling(self, step: int) -> SamplingParams:
        """Return how the answers are sampled."""
        evaluation = self.settings.evaluation
        return SamplingParams(
            n=evaluation.samples,
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            top_logprobs=self.noted,
            max_new_tokens=self.settings.rollout.max_new_tokens,
            stop=self.settings.rollout.stop,
            # "exam" is kept, so that measurements sample as before.
            stream=(self.settings.seed, "exam", Path(self.name).name, step),
        )


def all_scores(
    results: Mapping[str, EvaluationResult], trained_on: Collection[str]
) -> dict[str, Scores]:
    """Return the scores of the evaluations by name.

    Args:
        results: what was measured.
        trained_on: ``data.ids``; where it names some of the questions of "train", the rest of them
            have scores of their own, as "others".
    """
    found = {name: result.flat() for name, result in results.items()}
    if trained_on:
        train = results["train"]
        rest = tuple(q for q in train.questions if q.id not in trained_on)
        found["others"] = replace(train, questions=rest).flat()
    return found


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
        others = {}
        if "others" in after:
            others = {"others": {"before": before.get("others", {}), "after": after["others"]}}
        return {
            **others,
            "before": before.get("train", {}),
            "after": after.get("train", {}),
            "held_out": {"before": before.get("held_out", {}), "after": after.get("held_out", {})},
        }

    def state(self) -> dict[str, dict[str, Scores]]:
        """Return the scores before training and the last ones, as JSON."""
        return {"before": self.before, "after": self.after}

    def load_state(self, state: Mapping[str, Mapping[str, Scores]]) -> None:
        """Go on from a `state`."""
        self.before, self.after = (
            {name: dict(scores) for name, scores in state[when].items()}
            for when in ("before", "after")
        )
