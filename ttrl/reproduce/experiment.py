"""What is reproduced: a recipe, its seeds, on what it is measured, and where all of it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic

from ttrl.report.results import load_results
from ttrl.report.run_record import is_run
from ttrl.run.identity import MAY_DIFFER
from ttrl.settings import Settings
from ttrl.settings.data import HeldOutKey
from ttrl.settings.errors import readable_errors
from ttrl.settings.recipe import RECIPES, load_settings
from ttrl.types import UserError

Arm = Literal["ttrl", "labels"]
"""A run by the recipe; and the same one trained with the labels, the paper's second upper bound."""
When = Literal["before", "after"]

READING = (*(f"data.{key}" for key in get_args(HeldOutKey)), "data.max_prompt_tokens")
"""Settings that a benchmark has of its own: how its rows are read,"""
OF_A_BENCHMARK = (*READING, "answers.extract")
"""and which answers count in a completion."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Questions that the run does not train on.

    Example: ``DataSet("amc", "hub:AI-MO/aimo-validation-amc", {"data.prompt_field": "problem"})``.
    """

    name: str
    """A benchmark recipe's name, or as it was given."""
    path: str
    """As ``data.train`` takes it."""
    settings: dict[str, Any]
    """Settings in which it differs from the recipe's, by name."""

    @property
    def file_name(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"[^\w.-]+", "_", Path(self.name).name)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A row of the paper: runs of a recipe with several seeds, in one folder."""

    folder: Path
    settings: Settings
    """The recipe's, whatever the seed."""
    seeds: tuple[int, ...]
    labels: bool
    """Whether to train with the labels as well."""
    others: tuple[DataSet, ...] = ()
    """Out of domain."""
    ranks: int | None = None

    @property
    def recipe(self) -> Path:
        """The file of the settings, from which every stage starts."""
        return self.folder / "recipe.toml"

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The runs of each seed."""
        return ("ttrl", "labels") if self.labels else ("ttrl",)

    def run(self, arm: Arm, seed: int) -> Path:
        """Return the folder of a run."""
        return self.folder / arm / f"seed_{seed}"

    def evaluation(self, seed: int, when: When, data: DataSet) -> Path:
        """Return the file of an evaluation out of domain."""
        return self.folder / "evaluations" / f"seed_{seed}_{when}_{data.file_name}.json"

    def overrides(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Return the settings of a run that are not those of the recipe."""
        with_labels = {"reward.labels": "ground_truth", "reward.allow_ground_truth": True}
        return {"seed": seed, **(with_labels if arm == "labels" else {})}

    def settings_of(self, arm: Arm, seed: int) -> Settings:
        """Return the settings of a run.

        Raises:
            UserError: if the recipe cannot be trained with the labels.
        """
        tables = self.settings.model_dump(mode="json", exclude_none=True)
        for name, value in self.overrides(arm, seed).items():
            section, _, key = name.rpartition(".")
            (tables[section] if section else tables)[key] = value
        try:
            return Settings.model_validate(tables)
        except pydantic.ValidationError as error:
            raise UserError(
                f"this recipe cannot be trained with the labels, leave that out with --no-labels: "
                f"{readable_errors(error)}"
            ) from error

    def refuse_other(self) -> None:
        """Raise a UserError if the folder holds a part of another experiment."""
        if is_run(self.folder):
            raise UserError(
                f"--run-dir {self.folder} is the folder of a run: name one for the row, in which "
                "its runs will be"
            )
        if len({data.file_name for data in self.others}) < len(self.others):
            names = ", ".join(data.name for data in self.others)
            raise UserError(f"--ood {names}: two have the same name; rename a file")
        differ = [*self._other_runs(), *self._other_evaluations()]
        if differ:
            raise UserError(
                f"--run-dir {self.folder} was begun with other settings; nothing was changed. "
                f"{'; '.join(differ)}. Name another folder, or give these settings again"
            )

    def prepare(self) -> None:
        """Make the folder, and write the recipe."""
        (self.folder / "evaluations").mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(self.settings.to_toml(), encoding="utf-8")

    def _other_runs(self) -> Iterator[str]:
        for seed in self.seeds:
            for arm in self.arms:
                wanted, run = self.settings_of(arm, seed).flat(), self.run(arm, seed)
                if not is_run(run):
                    continue
                then = load_settings(str(run / "config.toml")).flat()
                for key in sorted(then.keys() | wanted.keys()):
                    if then.get(key) != wanted.get(key) and not key.startswith(MAY_DIFFER):
                        yield f"{run}: {key} was {then.get(key)!r}, now {wanted.get(key)!r}"

    def _other_evaluations(self) -> Iterator[str]:
        evaluation = self.settings.evaluation
        wanted = {
            "samples": evaluation.samples,
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "max_new_tokens": self.settings.rollout.max_new_tokens,
        }
        for data in self.others:
            for seed in self.seeds:
                for when in ("before", "after"):
                    path = self.evaluation(seed, when, data)
                    if not path.exists():
                        continue
                    (found,) = load_results(path)
                    then = (found.data, dict(found.sampling))
                    if then != (now := (data.path, {**wanted, "seed": seed})):
                        yield f"{path}: was {then}, now {now}"


def out_of_domain(settings: Settings, asked: Sequence[str] | None) -> tuple[DataSet, ...]:
    """Choose what is measured besides the run's own questions.

    Args:
        settings: the recipe's.
        asked: data sets, or names of benchmark recipes; None: the other benchmarks, if the run
            trains on one.

    Raises:
        UserError: if the run measures one of them anyway.
    """
    benchmarks = {
        path.stem: load_settings(path.stem, model=settings.model.path)
        for path in sorted((RECIPES / "benchmarks").glob("*.toml"))
    }
    own = (settings.data.train, settings.data.held_out)
    if asked is None:
        trained_on = any(b.data.train == settings.data.train for b in benchmarks.values())
        asked = [n for n, b in benchmarks.items() if b.data.train not in own] if trained_on else []
    found = []
    for name in asked:
        data = DataSet(name, name, {})
        if name in benchmarks:
            theirs, ours = benchmarks[name].flat(), settings.flat()
            differ = {k: theirs[k] for k in OF_A_BENCHMARK if theirs[k] != ours[k]}
            data = DataSet(name, theirs["data.train"], differ)
        if data.path in own:
            raise UserError(f"--ood {name}: the run measures these questions itself; leave it out")
        found.append(data)
    return tuple(found)
