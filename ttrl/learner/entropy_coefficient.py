"""The weight of the entropy bonus: fixed, or moved towards an entropy that it is to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttrl.settings import LossSettings


class EntropyCoefficient:
    """The coefficient of the next optimizer step; with ``entropy_target`` it adapts.

    Let H be the entropy of the last step, the mean over its trained tokens. After each step
    (Skywork-OR1, 2505.22312; as TRL has it)

        c <- min(c + step, max) if H <= target, else max(c - step, 0)

    and the bonus has the weight c if H <= target, else 0; before the first step it is 0.
    """

    def __init__(self, loss: LossSettings) -> None:
        """Start from ``loss.entropy_coef``."""
        self._loss = loss
        self._coefficient, self._low = loss.entropy_coef, False

    @property
    def value(self) -> float:
        """The coefficient now."""
        return self._coefficient if self._low or self._loss.entropy_target is None else 0.0

    @property
    def may_rise(self) -> bool:
        """Whether a later step may have a bonus, even if the next one has none."""
        return self._loss.entropy_target is not None or self.value > 0

    def after_step(self, entropy: float) -> None:
        """Move, by the mean entropy of the step that was taken."""
        loss = self._loss
        if loss.entropy_target is None:
            return
        self._low = entropy <= loss.entropy_target
        step = loss.entropy_coef_step if self._low else -loss.entropy_coef_step
        self._coefficient = min(max(self._coefficient + step, 0.0), loss.entropy_coef_max)

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on, as JSON."""
        return {"coefficient": self._coefficient, "low": self._low}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._coefficient, self._low = float(state["coefficient"]), bool(state["low"])
