"""trackio: a local tracker, or one in a Space of Hugging Face."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ttrl.report.trackers.tracker import COLUMNS, SampledAnswer, Tracked


class TrackioTracker:
    """A run of trackio, in the folder that ``TRACKIO_DIR`` names: ``trackio show``."""

    def __init__(self, tracked: Tracked) -> None:
        """Start the run, or go on with it."""
        import trackio

        self.trackio = trackio
        self.id = tracked.id or f"{tracked.name}-{uuid.uuid4().hex[:6]}"  # it goes on by name
        self.run = trackio.init(
            tracked.project, self.id, resume="allow", config=tracked.settings, embed=False
        )

    def log(
        self, step: int, metrics: Mapping[str, float], answers: Sequence[SampledAnswer]
    ) -> None:
        """Keep a step's figures and its table."""
        found: dict[str, Any] = dict(metrics)
        if answers:
            found["answers"] = self.trackio.Table(COLUMNS, [a.cells() for a in answers])
        self.run.log(found, step)

    def finish(self, *, failed: bool) -> None:
        """Write out what is still in memory."""
        self.run.finish()
