"""Experiment trackers behind one small interface; each library is imported where it is opened."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from ttrl.report.trackers.mlflow import MlflowTracker
from ttrl.report.trackers.tensorboard import TensorboardTracker
from ttrl.report.trackers.tracker import SampledAnswer, Tracked, Tracker
from ttrl.report.trackers.trackio import TrackioTracker
from ttrl.report.trackers.wandb import WandbTracker
from ttrl.settings.tracking import TrackerName, TrackingSettings
from ttrl.types import UserError

TRACKERS: dict[TrackerName, Callable[[Tracked], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}

__all__ = ["TRACKERS", "SampledAnswer", "Tracked", "Tracker", "refuse_absent_trackers"]


def refuse_absent_trackers(settings: TrackingSettings) -> None:
    """Raise a UserError if the library of a chosen tracker is not installed."""
    if absent := [name for name in settings.trackers if find_spec(name) is None]:
        extras = ",".join(absent)
        raise UserError(
            f"tracking.trackers: {' and '.join(absent)} not installed: pip install 'ttrl[{extras}]'"
        )
