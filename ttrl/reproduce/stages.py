"""The stages of an experiment: each a command of ``ttrl``, skipped where its result is there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ttrl.report.display import duration
from ttrl.report.run_record import is_run, read_run
from ttrl.reproduce.experiment import Arm, DataSet, Experiment, When
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

Kind = Literal["run", "evaluation"]
TITLES: dict[Arm, str] = {"ttrl": "train on votes", "labels": "train with the labels"}
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A command, and the file that is there when it has done its work.

    Commands are processes of their own, so that each has the machine's memory to itself.
    """

    kind: Kind
    title: str
    result: Path
    """A run's ``summary.json``, or the file of an evaluation."""
    arguments: tuple[str, ...]
    """Of ``ttrl``, without what says where the result goes."""

    def done(self) -> bool:
        """Say whether the result is there; whatever is, is whole."""
        return self.result.exists()

    def command(self) -> tuple[str, ...]:
        """Return the arguments of ``ttrl`` that make the result, or go on with it.

        A run that was interrupted before its first checkpoint is removed: it makes the same steps
        again.

        Raises:
            UserError: if another process is making it.
        """
        if self.kind == "evaluation":
            self._partial.unlink(missing_ok=True)
            return (*self.arguments, "--json", str(self._partial))
        run = self.result.parent
        if is_run(run) and read_run(run).state == "running":
            raise UserError(f"{run}: another process is training in it; wait for its end")
        if RunFolder(run).can_go_on():
            return (*self.arguments, "--run-dir", str(run), "--resume")
        if is_run(run):
            shutil.rmtree(run)
        return (*self.arguments, "--run-dir", str(run))

    def finish(self) -> None:
        """Put the result where it belongs, when the command has ended well."""
        if self.kind == "evaluation":
            self._partial.replace(self.result)

    @property
    def _partial(self) -> Path:
        return self.result.with_suffix(".partial")


def stages(experiment: Experiment) -> list[Stage]:
    """List the stages, seed by seed. The recipe is written, see `Experiment.prepare`.

    Before and after are in the runs: they measure the questions that they train on, and the held
    out ones. What is out of domain is measured with the settings and the seed of the run.
    """
    return [stage for seed in experiment.seeds for stage in _of_seed(experiment, seed)]


def _of_seed(experiment: Experiment, seed: int) -> Iterator[Stage]:
    ranks = ("--ranks", str(experiment.ranks)) if experiment.ranks else ()
    for arm in experiment.arms:
        sets = _sets(experiment.overrides(arm, seed))
        yield Stage(
            "run",
            f"{TITLES[arm]}, seed {seed}",
            experiment.run(arm, seed) / "summary.json",
            ("train", str(experiment.recipe), *sets, *ranks),
        )
    trained = str(experiment.run("ttrl", seed) / "model")
    models: dict[When, str] = {"before": experiment.settings.model.path, "after": trained}
    for data in experiment.others:
        for when, model in models.items():
            sets = _sets(_differing(experiment, model, data, seed))
            samples = str(experiment.settings.evaluation.samples)
            recipe = ("--recipe", str(experiment.recipe), "--k", samples)
            yield Stage(
                "evaluation",
                f"measure {data.name} {when}, seed {seed}",
                experiment.evaluation(seed, when, data),
                ("eval", model, data.path, *recipe, *sets, *ranks),
            )


def _differing(experiment: Experiment, model: str, data: DataSet, seed: int) -> dict[str, Any]:
    """Return what ``ttrl eval`` must be told, so that it measures as the run does.

    A model's name brings the settings of its recipe, over those that the experiment may have
    changed; before and after must not differ in them.
    """
    wanted = experiment.settings.flat() | data.settings
    found = load_settings(str(experiment.recipe), model=model, data=data.path).flat()
    given = {"name", "data.train", "model.path", "seed"}
    if model != experiment.settings.model.path:
        given.add("model.revision")  # of the starting model
    differ = {k: v for k, v in wanted.items() if k not in given and found.get(k) != v}
    return differ | {"seed": seed, "evaluation.greedy": wanted["evaluation.greedy"]}


def _sets(values: dict[str, Any]) -> list[str]:
    """Write settings as arguments; JSON's strings, numbers and lists are TOML's."""
    pairs = [f"{k}={'none' if v is None else json.dumps(v)}" for k, v in values.items()]
    return [argument for pair in pairs for argument in ("--set", pair)]


def run_stages(
    every: Sequence[Stage],
    run: Callable[[Sequence[str]], int],
    say: Callable[[str], object],
) -> None:
    """Run the stages whose results are not there, one after the other.

    Args:
        every: all stages.
        run: runs ``ttrl`` with these arguments; returns its exit code.
        say: shows a line.

    Raises:
        UserError: if one of them fails; those before it stay as they are.
        KeyboardInterrupt: if one was interrupted.
    """
    took: dict[Kind, list[float]] = {}
    for number, stage in enumerate(every, start=1):
        where = f"stage {number} of {len(every)}: {stage.title}"
        if stage.done():
            say(f"{where}: done")
            if stage.kind == "run":
                took.setdefault("run", []).append(json.loads(stage.result.read_text())["wall_s"])
            continue
        say(where + remaining([s.kind for s in every[number - 1 :] if not s.done()], took))
        begun = time.monotonic()
        code = run(stage.command())
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise UserError(
                f"{where}: ended with exit code {code}, and says why above. The same command goes "
                "on with it"
            )
        stage.finish()
        took.setdefault(stage.kind, []).append(time.monotonic() - begun)


def remaining(left: Sequence[Kind], took: dict[Kind, list[float]]) -> str:
    """Say how long the stages that are left will take, by what those of their kind took.

    Empty before one of any kind that is left is done.
    """
    known = sum(fmean(took[kind]) for kind in left if kind in took)
    unknown = [kind for kind in left if kind not in took]
    if not known:
        return ""
    beside = f" and {len(unknown)} {unknown[0]}{'s' * (len(unknown) > 1)}" if unknown else ""
    return f" (to the end about {duration(known)}{beside})"
