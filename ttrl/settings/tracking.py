"""The section [tracking]: where a run's figures are shown beside those of others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Positive, Section

TrackerName = Literal["wandb", "tensorboard", "mlflow", "trackio"]


class TrackingSettings(Section):
    """Experiment trackers. None of their failures ends a run, whose folder holds all of it."""

    trackers: Annotated[tuple[TrackerName, ...], Field(strict=False)] = ()
    """Any of "wandb", "tensorboard", "mlflow", "trackio". Addresses and keys are read by their
    libraries, from the environment."""
    project: str = "ttrl"
    """Project, or experiment, that the run belongs to."""
    name: str | None = None
    """The run's name there; None: that of its folder."""
    answers: Annotated[int, Field(ge=0)] = 16
    """Sampled answers in a step's table, taken from its questions in turn; 0: no table."""
    answers_every: Positive = 10
    """Steps between two tables; the first step has one."""
