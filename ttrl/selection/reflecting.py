"""The rule ``reflection``: the policy reads one solution per answer, and picks one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttrl.answers import Extractor, Grader
from ttrl.data.free_prompts import FreePrompts
from ttrl.models.pretrained import load_tokenizer
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.rewards.reflection import SelfReflection
from ttrl.rewards.vote import majority_vote
from ttrl.rollout.pool import RolloutPool
from ttrl.run.free_pass import FreePass
from ttrl.selection.candidates import Floats
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import AnswerKey, Completion, CompletionGroup, FinishReason, Question


@dataclass(frozen=True)
class Reflecting:
    """Asks the policy which of its answers is right, as `SelfReflection` does in training.

    Replies are sampled like the answers: ``evaluation.temperature`` and ``evaluation.top_p``.
    """

    settings: Settings
    extract: Extractor
    grader: Grader
    pool: RolloutPool
    ranks: Ranks

    def chosen(
        self,
        questions: Mapping[str, Question],
        groups: Sequence[RecordedGroup],
        key: AnswerKey,
        answers: int,
    ) -> tuple[Floats, Floats]:
        """Let the policy choose from the first ``answers`` answers to each question.

        Returns:
            per question, whether the choice is right, and the tokens of all replies.
        """
        voted = []
        for group in groups:
            completions = tuple(map(completion, group.answers[:answers]))
            vote = majority_vote([self.extract(c.text) for c in completions], self.grader)
            voted.append((CompletionGroup(questions[group.question], completions, 0), vote))
        prompts = FreePrompts.of(self.settings, load_tokenizer(self.settings.model))
        ask = FreePass(self._sampling(), prompts, self.pool, self.ranks, step=answers)
        labels = SelfReflection(self.settings, self.extract, self.grader).labels_from(
            voted, answers, ask
        )
        right = [
            float(self.grader.agree([labels[g.question]], key.answers[g.question])[0])
            for g in groups
        ]
        return np.array(right), np.array([_tokens(ask.groups.get(g.question, ())) for g in groups])

    def _sampling(self) -> Settings:
        evaluation = self.settings.evaluation
        like = {"temperature": evaluation.temperature, "top_p": evaluation.top_p}
        rollout = self.settings.rollout.model_copy(update={**like, "top_k": 0, "min_p": 0.0})
        return self.settings.model_copy(update={"rollout": rollout})


def completion(answer: RecordedAnswer) -> Completion:
    """Return a recorded answer as far as the policy is shown it, and its surprisal."""
    reason = FinishReason.LENGTH if answer.truncated else FinishReason.STOP
    return Completion((), (-(answer.surprisal or 0.0),), answer.text, reason)


def _tokens(replies: Sequence[CompletionGroup]) -> float:
    return float(sum(len(c.token_ids) for group in replies for c in group.completions))
