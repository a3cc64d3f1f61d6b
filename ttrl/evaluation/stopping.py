"""Says from the votes when training should end, and which weights were the best; no label is read.

A run and a replay of its ``metrics.jsonl`` use the same class, so a rule can be tried on runs that
were made without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ttrl.settings import StoppingSettings


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run should end after a step.

    Example: ``Ending("2 passes in a row were no better", goes_back=True)``.
    """

    reason: str
    """For the user."""
    goes_back: bool
    """Whether the weights of the best pass are better than the present ones."""


class StoppingRule:
    """Rates each pass over the questions by its votes, and says when there is no more to gain.

    Labels that the next pass changes were worth little, so the votes of a pass are rated when the
    one after it is over: majority ratio x (1 - flip rate of the next). The weights that training
    begins with have only the votes of the first step, which are theirs alone.
    """

    def __init__(self, settings: StoppingSettings, steps_per_pass: int) -> None:
        """Look at passes of ``steps_per_pass`` steps."""
        self.settings = settings
        self.size = steps_per_pass
        self.best = 0
        """The step after which the weights were the best that are rated so far."""
        self.promoted = False
        """Whether the last step has made the pass before its own the best."""
        self._rating: float | None = None
        self._last: float | None = None
        self._worse = 0
        self._pass: list[tuple[float, float | None]] = []

    def after_step(self, step: int, metrics: Mapping[str, float]) -> Ending | None:
        """Take the metrics of the next step, counted from 1; return why to end, if so.

        ``guard/collapse`` among them is what `CollapseGuard` says.
        """
        ratio = metrics["vote/majority_ratio"]
        self.promoted = False
        if self._rating is None:
            self._rating = ratio
        self._pass.append((ratio, metrics.get("vote/flip_rate")))
        if metrics.get("guard/collapse"):
            return Ending("it looks like a collapse", goes_back=True)
        return self._after_pass(step) if step % self.size == 0 else None

    def _after_pass(self, step: int) -> Ending | None:
        ratio = fmean(ratio for ratio, _ in self._pass)
        known = [flips for _, flips in self._pass if flips is not None]
        flips = fmean(known) if known else None
        self._pass = []
        before, self._last = self._last, ratio
        if flips is None:  # no question was asked before: nothing can be said of the labels
            return None
        if before is not None:
            self._rate(step - self.size, before * (1 - flips))
        if ratio >= self.settings.share and 1 - flips >= self.settings.share:
            return Ending(
                f"the votes have settled: over the last pass the majority had {ratio:.0%} of them, "
                f"and {flips:.0%} of the labels changed (stopping.share = "
                f"{self.settings.share:g})",
                goes_back=False,
            )
        if self._worse >= self.settings.patience:
            return Ending(
                f"{self._worse} passes in a row were no better than the votes of step {self.best} "
                f"(rated {self._rating:.2f}; stopping.patience = {self.settings.patience})",
                goes_back=True,
            )
        return None

    def _rate(self, step: int, rating: float) -> None:
        """Compare the pass that has ended with ``step`` with the best."""
        assert self._rating is not None
        self.promoted = rating > self._rating + self.settings.gain
        if self.promoted:
            self.best, self._rating, self._worse = step, rating, 0
        else:
            self._worse += 1

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on, as JSON."""
        return {
            "best": self.best,
            "rating": self._rating,
            "last": self._last,
            "worse": self._worse,
            "pass": [list(pair) for pair in self._pass],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.best, self._rating = state["best"], state["rating"]
        self._last, self._worse = state["last"], state["worse"]
        self._pass = [(ratio, flips) for ratio, flips in state["pass"]]
