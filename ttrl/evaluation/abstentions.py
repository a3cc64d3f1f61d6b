"""A vote without voters: what to say, and when to stop, if nearly nothing yields an answer."""

from __future__ import annotations

from collections.abc import Iterable

from ttrl.answers import Extractor
from ttrl.settings import Settings
from ttrl.types import CompletionGroup, FinishReason

LOOKS_FOR = {
    "boxed": r"takes the last \boxed{...}",
    "choice": r"takes the letter in the last \boxed{...}, or else one that stands as a choice",
    "boxed_or_number": r"takes the last \boxed{...}, or else the last number",
}
"""What each style of ``answers.extract`` does."""
SHOWN = 300
"""Characters of a completion that are shown at its end, where its answer should be."""


class AbstentionGuard:
    """Compares the share of completions without an answer with ``guard.abstention``."""

    def __init__(self, settings: Settings, extract: Extractor) -> None:
        """Look at answers as ``extract`` reads them, which ``answers.extract`` names."""
        self.settings, self.extract = settings, extract
        self.in_a_row = 0
        """The number of last steps of which nearly no completion had an answer."""
        self._said = False

    def warning(self, share: float, groups: Iterable[CompletionGroup]) -> str | None:
        """Return what to say where this share abstained: once, until the share is in order.

        Args:
            share: of all completions.
            groups: to show one of them that abstained.
        """
        is_new = self._is_high(share) and not self._said
        self._said = self._is_high(share)
        if not is_new:
            return None
        name = self.settings.answers.extract
        rule = f"answers.extract = {name!r} {LOOKS_FOR.get(name, 'found none')}"
        return f"no answer could be read from {share:.0%} of the completions: {rule}" + next(
            (
                self._example(completion.text, completion.finish_reason)
                for group in groups
                for completion in group.completions
                if self.extract(completion.text) is None
            ),
            "",
        )

    def stop(self, share: float) -> str | None:
        """Return why the run must stop after a step in which this share abstained, if it must."""
        self.in_a_row = self.in_a_row + 1 if self._is_high(share) else 0
        guard = self.settings.guard
        if not 0 < guard.abstaining_steps <= self.in_a_row:
            return None
        return (
            f"for {self.in_a_row} steps in a row more than {guard.abstention:.0%} of the "
            "completions had no answer, so there is nothing to learn from (guard.abstention; to go "
            "on all the same: guard.abstaining_steps = 0)"
        )

    def state(self) -> int:
        """Return what the next `stop` depends on, as JSON."""
        return self.in_a_row

    def load_state(self, state: int) -> None:
        """Restore what `state` returned."""
        self.in_a_row = state

    def _is_high(self, share: float) -> bool:
        return share > self.settings.guard.abstention

    def _example(self, text: str, reason: FinishReason) -> str:
        """Show one completion as it came, and say what to change."""
        if reason is FinishReason.LENGTH:
            limit = self.settings.rollout.max_new_tokens
            cure = f"it was cut off at rollout.max_new_tokens = {limit}: raise that, or ask"
            ended = "cut off"
        else:
            cure, ended = "ask", "complete"
        begun = "..." if len(text) > SHOWN else ""
        return (
            f". One of them ({ended}): {begun}{text[-SHOWN:]!r}. What to change: {cure} for that "
            "form in data.suffix or data.system_prompt, for example data.suffix = "
            r'"\nPut your final answer within \\boxed{}.", or choose another answers.extract'
        )
