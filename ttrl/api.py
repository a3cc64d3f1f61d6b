"""The Python API: what ``ttrl train`` does, for programs and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.launch import is_main
from ttrl.types import UserError

if TYPE_CHECKING:  # importing ttrl loads nothing heavy
    from rich.console import Console
    from transformers import PreTrainedModel

    from ttrl.report.run_record import RunRecord
    from ttrl.rewards.estimators import RewardEstimator
    from ttrl.run.callbacks import Callback


@dataclass(frozen=True)
class Run:
    """A run that has come to its end.

    Example: ``run.summary["after"]["pass@1"]``, ``run.metrics[-1]["vote/majority_ratio"]``,
    ``run.model.generate(...)``.
    """

    path: Path
    """The run's folder."""
    settings: Settings
    """The settings as they were resolved."""
    summary: dict[str, Any]
    """What ``summary.json`` holds."""

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of ``metrics.jsonl``, one per step; docs/metrics.md explains their names."""
        return [dict(line) for line in self.record.steps]

    @cached_property
    def record(self) -> RunRecord:
        """All that the folder holds: metrics, answers, evaluations question by question."""
        from ttrl.report.run_record import read_run

        return read_run(self.path)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The trained model, loaded with transformers from ``model/``."""
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.path / "model")
        return model


def train(
    recipe: str | Path | Settings,
    *,
    model: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    run_dir: str | Path | None = None,
    replay: str | Path | None = None,
    resume: bool = False,
    estimator: RewardEstimator | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Run:
    """Train on unlabeled questions, in this process.

    Args:
        recipe: a shipped recipe's name, the path of a .toml file, or settings.
        model: the starting model, as for ``ttrl train --model``.
        overrides: settings by name, ``{"rollout.votes": 32}``, or as on the command line,
            ``["rollout.votes=32"]``.
        run_dir: the run's folder; None: runs/NAME.
        replay: the rollouts folder of another run, whose answers are trained on.
        resume: go on with the run in ``run_dir`` from its last checkpoint.
        estimator: your own, in place of the one that ``reward.estimator`` names.
        callbacks: called with a `ttrl.types.StepResult` after each step, before anything is
            measured; a string that one of them returns ends the run, for that reason and for good.
        console: where to show progress; None: on the screen.

    Raises:
        ttrl.UserError: for what you can put right; nothing is lost.
    """
    from rich.console import Console

    from ttrl import trainer
    from ttrl.report.display import Display
    from ttrl.run.run_folder import RunFolder

    if not isinstance(recipe, Settings):
        settings = load_settings(str(recipe), model=model, overrides=overrides)
    elif model is not None or overrides:
        raise UserError("ttrl.train: settings are whole; model and overrides are for a recipe")
    else:
        settings = recipe
    folder = RunFolder(Path(run_dir) if run_dir is not None else Path("runs") / settings.name)
    summary = trainer.train(
        settings,
        folder,
        Display(console or Console(emoji=False, quiet=not is_main())),
        None if replay is None else Path(replay),
        resume=resume,
        estimator=estimator,
        callbacks=callbacks,
    )
    return Run(folder.path, settings, summary)
