"""Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ttrl.report.trackers.tracker import COLUMNS, SampledAnswer, Tracked


class WandbTracker:
    """A run of Weights & Biases: online, or with ``WANDB_MODE=offline`` for ``wandb sync``."""

    def __init__(self, tracked: Tracked) -> None:
        """Start the run, or go on with it.

        Raises:
            wandb.errors.UsageError: if there is no key, for which nobody is asked.
        """
        import wandb

        self.wandb, self.id = wandb, tracked.id or uuid.uuid4().hex[:8]
        settings = wandb.Settings(
            console="off", quiet=True, save_code=False, init_timeout=60, finish_timeout=60
        )
        if wandb.setup(settings).settings.mode == "online":
            wandb.login(prompt=False)
        self.run = wandb.init(
            project=tracked.project,
            name=tracked.name,
            id=self.id,
            resume="allow",
            dir=tracked.folder,
            config=tracked.settings,
            settings=settings,
        )

    def log(
        self, step: int, metrics: Mapping[str, float], answers: Sequence[SampledAnswer]
    ) -> None:
        """Keep a step's figures and its table."""
        found: dict[str, Any] = dict(metrics)
        if answers:
            found["answers"] = self.wandb.Table(COLUMNS, [a.cells() for a in answers])
        self.run.log(found, step=step)

    def finish(self, *, failed: bool) -> None:
        """Send what is still here."""
        self.run.finish(exit_code=int(failed))
