"""Sums over the tokens of an optimizer step, of which its figures are means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ttrl.learner.objective import Loss
from ttrl.types import PackedBatch


class StepSums:
    """Sums over the trained tokens of an optimizer step."""

    def __init__(self) -> None:
        """Begin before the first micro-batch."""
        self.loss, self.tokens = 0.0, 0
        self.totals: dict[str, float] = {}
        self.largest: dict[str, float] = {}

    def add(self, batch: PackedBatch, loss: Loss) -> None:
        """Add one micro-batch's figures; ``batch`` is what they are of, on the CPU."""
        live_T = batch.token_weights_T != 0
        self.loss += loss.loss.item()
        self.tokens += int(live_T.sum())
        for name, value_T in loss.means.items():
            total = value_T.cpu()[live_T].sum().item()
            self.totals[name] = self.totals.get(name, 0.0) + total
        for name, value_T in loss.largest.items():
            values = value_T.cpu()[live_T].tolist()
            self.largest[name] = max([self.largest.get(name, -math.inf), *values])

    @classmethod
    def over(cls, parts: Sequence[StepSums]) -> StepSums:
        """Add up all ranks' sums."""
        whole = cls()
        whole.loss, whole.tokens = sum(p.loss for p in parts), sum(p.tokens for p in parts)
        whole.totals = {name: sum(p.totals[name] for p in parts) for name in parts[0].totals}
        whole.largest = {name: max(p.largest[name] for p in parts) for name in parts[0].largest}
        return whole
