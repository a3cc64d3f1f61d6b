"""Identity of a run: a checkpoint is gone on with by the run that saved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttrl.run.resume import refuse_differences
from ttrl.settings import Settings
from ttrl.types import UserError


@dataclass(frozen=True, slots=True)
class Identity:
    """The settings, data and model that a run began with."""

    settings: Settings
    estimator: str
    """Its name, also where it is an object that was given to `ttrl.train`."""
    replayed: bool
    """Whether the run trains on recorded answers."""
    questions: str
    """Digest of the questions, see `ttrl.data.sources.QuestionSource.digest`."""
    model: dict[str, str]
    """Digests of the model, see `ttrl.run.resume.model_digests`."""
    sizes: dict[str, int]
    """Numbers of elements of what is trained, by name."""

    def as_json(self) -> dict[str, Any]:
        """Return the identity as JSON, for a checkpoint."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "estimator": self.estimator,
            "replayed": self.replayed,
            "questions": self.questions,
            "model": self.model,
            "sizes": self.sizes,
        }

    def refuse_other(self, saved: Mapping[str, Any], checkpoint: Path) -> None:
        """Raise a UserError that says what this run began with, and that of ``saved`` did not."""
        refuse_differences(
            Settings.model_validate(saved["settings"]),
            self.settings,
            f"{checkpoint} was saved by a run with other settings",
            "Remove that checkpoint, and an earlier one is used",
        )
        if saved["replayed"] != self.replayed:
            add = "give --replay as well" if saved["replayed"] else "leave --replay out"
            raise UserError(f"--resume: {add}, as when the run was started")
        model = f"model.path = {self.settings.model.path!r}"
        for what, then, now in (
            ("the estimator", saved["estimator"], self.estimator),
            ("data.train", saved["questions"], self.questions),
            (f"the configuration of {model}", saved["model"]["config"], self.model["config"]),
            (f"one of the weights of {model}", saved["model"]["weights"], self.model["weights"]),
            (f"the set of parameters of {model}", saved["sizes"], self.sizes),
        ):
            if then != now:
                raise UserError(
                    f"--resume: {what} is not what it was when {checkpoint} was saved; put it "
                    "back, or start a new run"
                )
