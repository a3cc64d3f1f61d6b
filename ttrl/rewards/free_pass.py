"""Label sources that look at a step's answers first, and may ask the policy for text about them.

Data flows one way: answers, votes, requests, replies, labels, estimates. A reply is sampled by the
engines of the rollout at the same weights, with random numbers of its own, and lies beside the
step's answers (`ttrl.types.CompletionGroup.passes`), so that a replay reads it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ttrl.data.free_prompts import Request
from ttrl.rewards.labels import Elect, Labels
from ttrl.types import Completion, CompletionGroup, Question, Vote, WeightSource


class AskPolicy(Protocol):
    """The policy, as far as a label source may ask it."""

    def __call__(
        self,
        name: str,
        requests: Sequence[Request],
        *,
        n: int,
        max_new_tokens: int,
        answers: bool = False,
    ) -> list[tuple[Completion, ...]]:
        """Return ``n`` replies to each request; none to one for which there was no room.

        All ranks call this together, equally often and with the same names, each with the requests
        of its own, of which it may have none.

        Args:
            name: names the random numbers of these replies; another one for each call.
            requests: what is asked.
            n: replies to each.
            max_new_tokens: tokens of a reply, at most.
            answers: whether ``data.suffix`` stands behind the message, so that a reply answers in
                the form that ``answers.extract`` reads.
        """
        ...


class AfterVoting:
    """A label source that decides when a step's answers have voted."""

    def labels_for(self, questions: Sequence[Question], step: int, elect: Elect) -> Labels:
        """Return None: nothing is known before the answers have voted."""
        return None

    def after_update(self, policy: WeightSource) -> None:
        """Ignore an update of the policy."""

    def labels_from(
        self, voted: Sequence[tuple[CompletionGroup, Vote]], step: int, ask: AskPolicy
    ) -> Mapping[str, str | None]:
        """Return the label of each question, by id; all ranks call this together.

        Args:
            voted: the groups that this rank has sampled, and their votes.
            step: the training step, for random numbers.
            ask: the policy.

        Returns:
            A voter's own spelling, or None where there is no label: then no answer earns anything,
            and ``free_pass/unlabelled_share`` counts it.
        """
        raise NotImplementedError
