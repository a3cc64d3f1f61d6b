"""A path: the beginning of a solution, and how the policy goes on with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ttrl.types import Completion, FinishReason, Question


@dataclass(frozen=True, slots=True)
class Path:
    r"""The steps of a solution so far.

    Example: ``Path((7, 8), "7+5=12\n")`` has one step, and goes on.
    """

    token_ids: tuple[int, ...] = ()
    """What the policy has written."""
    text: str = ""
    """What `token_ids` spell."""
    score: float = 0.0
    """What the reward model makes of it."""
    ended: bool = False
    """Whether nothing comes after it: the policy has ended it, or it was cut off."""
    truncated: bool = False
    """Whether it was cut off."""

    def question(self, asked: Question, id: str) -> Question:
        """Return the prompt that goes on with this path; its random numbers depend on ``id``."""
        ids = (*asked.prompt_ids, *self.token_ids)
        return Question(id, asked.prompt + self.text, ids, asked.text)

    def then(self, completion: Completion, step: str) -> Path:
        """Return the path with what a completion adds: a step, or the end of the solution.

        A completion that ended without ``step`` in its text has ended the solution.
        """
        truncated = completion.finish_reason is FinishReason.LENGTH
        return replace(
            self,
            token_ids=self.token_ids + completion.token_ids,
            text=self.text + completion.text,
            ended=truncated or step not in completion.text,
            truncated=truncated,
        )
