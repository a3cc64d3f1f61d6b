"""What a tracker is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run as a tracker sees it.

    Example: ``Tracked(project="ttrl", name="aime24", folder=Path("runs/aime24/trackers"),
    settings={"seed": 0, ...}, toml="seed = 0 ...", id=None)``.
    """

    project: str
    name: str
    folder: Path
    """Where the tracker may write, inside the run's folder."""
    settings: dict[str, Any]
    """The resolved settings, as JSON."""
    toml: str
    """The same as text."""
    id: str | None
    """`Tracker.id` of the run that this one goes on with."""


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """A row of a table of sampled answers; its texts are the model's, and may hold anything."""

    question: str
    prompt: str
    text: str
    answer: str | None
    label: str | None
    reward: float

    def cells(self) -> list[Any]:
        """Return the values of a row under `COLUMNS`."""
        return list(asdict(self).values())


COLUMNS = list(SampledAnswer.__dataclass_fields__)


class Tracker(Protocol):
    """A service or library that keeps figures of runs. Its calls may fail, and may take long."""

    id: str
    """Names the run there, so that another process can go on with it."""

    def log(
        self, step: int, metrics: Mapping[str, float], answers: Sequence[SampledAnswer]
    ) -> None:
        """Keep a step's figures, and its table of answers, if there are any."""

    def finish(self, *, failed: bool) -> None:
        """Write out what is still in memory, and end the run there."""
