"""Per-question adaptation: a question is answered again when it was trained on, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.learner.trained_model import TrainedModel
from ttrl.report.display import Display
from ttrl.rewards.scorer import GroupScorer
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import voting
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import CompletionGroup, Question, Vote


class Adaptation:
    """Has questions answered by the adapted model, and goes back to the starting adapters."""

    def __init__(self, settings: Settings, model: TrainedModel, ranks: Ranks) -> None:
        """Keep the weights that are trained, as they are: before anything was learned.

        They follow from the settings alone, so a run that goes on makes them again.
        """
        self.settings, self.model, self.ranks = settings, model, ranks
        self._start = model.shards(("weights",))

    def answer(
        self,
        questions: Sequence[Question],
        step: int,
        pool: RolloutPool,
        scorer: GroupScorer,
        display: Display,
    ) -> tuple[list[CompletionGroup], list[Vote]]:
        """Sample and count the votes of the model that the pool has; all ranks together."""
        with display.bar(f"step {step}: adapted", len(questions)) as bar:
            params = voting(self.settings, "adapted", step)
            groups = pool.sample(questions, params, lambda group: bar.advance())
        return groups, self.ranks.on_rank_zero(lambda: [scorer.vote(group) for group in groups])

    def reset(self) -> None:
        """Put the starting adapters back, with an optimizer that has seen nothing."""
        self.model.reload()
        self.model.load_shards(self._start)
        self.model.forget_steps()
        self.model.offload()
