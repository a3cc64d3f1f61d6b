"""What every way to spend tokens is measured with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from ttrl.evaluation.evaluation import Evaluation
from ttrl.report.display import Display
from ttrl.report.rollouts import RecordedGroup
from ttrl.reward_models import RewardModel
from ttrl.rollout.pool import RolloutPool
from ttrl.scaling.choices import REWARD
from ttrl.scaling.folder import ScaleFolder
from ttrl.scaling.points import Point
from ttrl.selection.candidates import Candidates
from ttrl.selection.scores import rewards
from ttrl.types import CompletionGroup, Question


@dataclass
class Measuring:
    """What every method is measured with; answers are sampled once, and scored once."""

    evaluation: Evaluation
    """The questions, how they are sampled, and who grades."""
    open_pool: Callable[[], RolloutPool]
    """Loads the model, untrained, when the first method needs it."""
    model: tuple[str, RewardModel] | None
    """Scores solutions, with its name; None: no method needs it."""
    counts: Sequence[int]
    """Answers per question, from few to many."""
    width: int
    """How often a search goes on with a path that it keeps."""
    display: Display
    folder: ScaleFolder | None = None
    """Keeps what is measured; None: nobody does."""
    seconds: float = field(default=0.0, init=False)
    """Seconds that the shared answers took."""
    _groups: list[RecordedGroup] = field(default_factory=list, init=False)
    _candidates: list[Candidates] = field(default_factory=list, init=False)
    _scoring_s: float = field(default=0.0, init=False)

    @cached_property
    def pool(self) -> RolloutPool:
        """The model, untrained."""
        return self.open_pool()

    def close(self) -> None:
        """End the engine, if there is one."""
        if "pool" in vars(self):
            self.pool.close()

    @property
    def asked(self) -> list[Question]:
        """The questions that have an answer."""
        return self.evaluation.answerable

    @property
    def reward_model(self) -> RewardModel:
        """The reward model, of a method that needs it."""
        assert self.model is not None
        return self.model[1]

    def reference(self, id: str) -> str:
        """Return a question's answer."""
        return self.evaluation.asked.key.answers[id]

    def answers(self, group: RecordedGroup) -> list[str | None]:
        """Return what was answered."""
        return [self.evaluation.extract(a.text) for a in group.answers]

    def groups(self) -> list[RecordedGroup]:
        """Return ``max(counts)`` answers to each question, sampled when first asked for."""
        if not self._groups:
            begun = time.perf_counter()
            if self.folder is None:
                self._groups = self._sample(self.evaluation)
                self.seconds = time.perf_counter() - begun
            else:
                self._groups, self.seconds = self.folder.answers(self._sample)
        return self._groups

    def _sample(
        self,
        evaluation: Evaluation,
        on_group: Callable[[CompletionGroup], None] = lambda group: None,
    ) -> list[RecordedGroup]:
        return evaluation.sample(self.pool, 0, self.display, on_group)

    def candidates(self) -> list[Candidates]:
        """Return those answers as what is chosen among, with the reward model's scores."""
        groups = self.groups()
        if not self._candidates:
            found = []
            with self.display.bar("scoring", len(groups)) as bar:
                for group, (scores, took) in zip(groups, self._scored(groups), strict=True):
                    self._scoring_s += took
                    found.append(self.read(group, scores))
                    bar.advance()
            self._candidates = found
        return self._candidates

    def _scored(self, groups: Sequence[RecordedGroup]) -> Iterator[tuple[list[float], float]]:
        """Yield the scores of each group's answers, and the seconds that they took."""
        assert self.model is not None
        name, model = self.model
        how = self.evaluation.settings.reward_model.reduce
        questions = {q.id: q for q in self.asked}

        def score(group: RecordedGroup) -> list[float]:
            found: list[float] = rewards(group, model, questions, how).tolist()
            return found

        if self.folder is not None:
            yield from self.folder.scores(name, groups, score)
            return
        for group in groups:
            begun = time.perf_counter()
            yield score(group), time.perf_counter() - begun

    def read(self, group: RecordedGroup, scores: Sequence[float]) -> Candidates:
        """Return answers as what is chosen among, by these scores."""
        reference = self.reference(group.question)
        evaluation = self.evaluation
        found = Candidates.of(group, reference, evaluation.extract, evaluation.grader)
        return found.scored(REWARD, np.array(scores, dtype=np.float64))

    def point(self, method: str, n: int, scores: Sequence[float], *, scored: bool) -> Point:
        """Return what a choice among n of the shared answers reached; it costs a share of them."""
        groups = self.groups()
        tokens = n * fmean(a.tokens for group in groups for a in group.answers)
        took = self.seconds + (self._scoring_s if scored else 0.0)
        share = n / len(groups[0].answers) / len(groups)
        read = tokens if scored else 0.0
        return Point(method, n, tuple(scores), tokens, read, seconds=took * share)
