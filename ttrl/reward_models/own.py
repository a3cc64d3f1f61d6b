"""A user's own reward model: a function in a file of theirs, FILE.py:FUNCTION."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.settings import Settings
from ttrl.settings.plugins import errors_as_user_error, load_plugin
from ttrl.types import Question, UserError


class OwnFunction:
    """Scores solutions with a function from (prompt, solution) to a score, or to scores of steps.

    The prompt is the text that the policy reads. The file runs with all rights, and the solution is
    hostile text.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        """Load the function; a step ends as the settings say, or with an empty line."""
        self.step = settings.reward_model.step or "\n\n"
        self._name, self._function = name, load_plugin(name, "reward model")

    def scores(self, question: Question, solutions: Sequence[str]) -> list[tuple[float, ...]]:
        """Score the solutions, one after the other.

        Raises:
            UserError: if the function fails, or returns no numbers from 0 to 1.
        """
        return [self._checked(question.prompt, solution) for solution in solutions]

    def _checked(self, prompt: str, solution: str) -> tuple[float, ...]:
        with errors_as_user_error(self._name, "reward model"):
            said = self._function(prompt, solution)
            found = said.tolist() if hasattr(said, "tolist") else said  # NumPy's and torch's
        every = tuple(found) if isinstance(found, list | tuple) else (found,)
        if not every or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in every):
            raise UserError(
                f"reward model = {self._name!r} returned {str(said)[:200]!r}: expected a number "
                "from 0 to 1, or a list of them, one per step"
            )
        return tuple(map(float, every))
