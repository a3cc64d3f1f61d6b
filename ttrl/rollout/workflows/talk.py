"""Holds what has been said so far in conversations about some questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.workflows.acts import Place
from ttrl.rollout.workflows.base import Ask
from ttrl.types import Completion, CompletionGroup, Question

Said = Mapping[Place, Completion]
"""What has been said in one trajectory."""
Replies = dict[int, list[list[Completion]]]
"""What agents say in a turn, by their numbers: for each question, trajectory by trajectory."""


@dataclass(slots=True)
class Talk:
    """Conversations about some questions, as far as they have come."""

    ask: Ask
    questions: Sequence[Question]
    params: SamplingParams
    """How all turns are sampled, apart from their number and random numbers."""
    said: list[list[dict[Place, Completion]]]
    """By question and trajectory."""
    count: int
    """Trajectories of each question."""
    version: int = 0
    """Of the weights that have spoken last."""
    here: set[str] = field(default_factory=set)
    """What this rank has sampled of the last turn: each group is told of by one rank."""

    @classmethod
    def of(
        cls, ask: Ask, questions: Sequence[Question], params: SamplingParams, count: int
    ) -> Talk:
        """Begin so many conversations about each question."""
        return cls(ask, questions, params, [[{} for _ in range(count)] for _ in questions], count)

    def asked(
        self, prompts: Sequence[Question], params: SamplingParams
    ) -> Sequence[CompletionGroup]:
        """Ask, and note what is sampled here."""
        found = self.ask(prompts, params, lambda group: self.here.add(group.question.id))
        self.version = found[0].policy_version if found else 0
        return found

    def hear(self, place: Place, replies: Sequence[Sequence[Completion]]) -> None:
        """Add what an agent has said in a turn."""
        for of, found in zip(self.said, replies, strict=True):
            for one, completion in zip(of, found, strict=True):
                one[place] = completion

    def groups(self) -> list[CompletionGroup]:
        """Return all that was said about each question, trajectory by trajectory."""
        pairs = zip(self.questions, self.said, strict=True)
        return [
            CompletionGroup(question, tuple(c for one in of for c in one.values()), self.version)
            for question, of in pairs
        ]
