"""A run's folder, read: settings, steps, answers, evaluations, and how the run ended."""

from __future__ import annotations

import fcntl
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ttrl.report.results import EvaluationResult, is_count, is_number, load_results
from ttrl.report.rollouts import RecordedGroup, read_groups
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.paths import STEP_NAME
from ttrl.types import UserError

_AGENT = re.compile(r"agent_(\d+)/")
State = Literal["finished", "stopped", "running", "unfinished"]
"""finished: to its last step. stopped: for good, but earlier. running: a process trains in it.
unfinished: it was interrupted, and may go on."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder shows it, finished or not.

    Example: ``run.curve("vote/majority_ratio")``, ``run.groups(run.sampled[-1])[0].label``,
    ``run.evaluations()[0].mean("pass@1")``.
    """

    path: Path
    """The folder."""
    settings: Settings
    """The resolved settings."""
    steps: tuple[Mapping[str, Any], ...]
    """Lines of ``metrics.jsonl`` from step 1 on; docs/metrics.md explains their names."""
    baseline: Mapping[str, Any]
    """The line of step 0: what was measured before training; empty if nothing was."""
    summary: Mapping[str, Any] | None
    """What ``summary.json`` holds; None: the run has not come to its end."""
    state: State
    """How the run stands."""

    @property
    def written(self) -> datetime | None:
        """When the last step was written down, by its file's time; None: no step has been."""
        path = self.path / "metrics.jsonl"
        when = path.stat().st_mtime if path.exists() else None
        return None if when is None else datetime.fromtimestamp(when).astimezone()

    @property
    def sampled(self) -> list[int]:
        """The steps whose answers are there."""
        return _steps_in(self.path / "rollouts", "jsonl")

    def groups(self, step: int) -> list[RecordedGroup]:
        """Read the answers of a step.

        Raises:
            UserError: if they are not there, or cannot be read.
        """
        return read_groups(self.path / "rollouts" / f"step_{step:05d}.jsonl")

    def evaluations(self) -> list[EvaluationResult]:
        """Read what was measured, question by question, in the order of steps."""
        folder = self.path / "evaluations"
        files = [folder / f"step_{step:05d}.json" for step in _steps_in(folder, "json")]
        return [result for file in files for result in load_results(file)]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric wherever it was written, step 0 included."""
        lines = (self.baseline, *self.steps)
        return [(line["step"], line[name]) for line in lines if name in line]

    @property
    def policies(self) -> list[str]:
        """How metrics name the policies: "policy", and where each agent has one "agent_1" ..."""
        found = {match[1] for line in self.steps for name in line if (match := _AGENT.match(name))}
        return ["policy", *(f"agent_{number}" for number in sorted(map(int, found)))]

    @staticmethod
    def of_policies(line: Mapping[str, Any], count: str) -> float:
        """Add up a count of a step's updates, as "tokens", over the policies of all agents."""
        named = re.compile(rf"(policy|agent_\d+)/{count}")
        return math.fsum(value for name, value in line.items() if named.fullmatch(name))


def is_run(path: Path) -> bool:
    """Say whether a folder is a run's."""
    return (path / "config.toml").is_file()


def read_run(path: Path) -> RunRecord:
    """Read a run's folder, also while the run goes on.

    Raises:
        UserError: if it is none, or what it holds cannot be read.
    """
    if not is_run(path):
        raise UserError(f"{path} is no run: it has no config.toml; `ttrl runs` lists those there")
    config = path / "config.toml"
    try:
        settings = load_settings(str(config))
    except UserError as error:
        raise UserError(f"{config}: {error}") from error
    lines = _metrics(path / "metrics.jsonl")
    summary = read_summary(path / "summary.json")
    return RunRecord(
        path=path,
        settings=settings,
        steps=tuple(line for line in lines if line["step"] > 0),
        baseline=next((line for line in lines if line["step"] == 0), {}),
        summary=summary,
        state=_state(config, summary),
    )


def _state(config: Path, summary: Mapping[str, Any] | None) -> State:
    if summary is not None:
        return "stopped" if summary.get("stopped") else "finished"
    with config.open("rb") as file:  # `RunFolder.claim` holds it while a run goes on
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
        except OSError:  # a file system without locks: nothing can be said
            return "unfinished"
    return "unfinished"


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of the metrics; the last one may be half written."""
    if not path.exists():
        return []
    try:
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [_metrics_line(number, line) for number, line in enumerate(whole, start=1)]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _metrics_line(number: int, line: str) -> dict[str, Any]:
    """Return a line's figures; a ValueError says what in it nothing can be drawn of."""
    found = json.loads(line)
    if not isinstance(found, dict) or not is_count(found.get("step")):
        raise ValueError(f"line {number}: expected an object with a step in each line")
    for name, value in found.items():
        if not is_number(value):
            raise ValueError(
                f"line {number}: {name} = {repr(value)[:60]}: expected a finite number"
            )
    return found


def read_summary(path: Path) -> dict[str, Any] | None:
    """Read what a run writes at its end; None: it has not come to it.

    Raises:
        UserError: if it is there, and is not what a run writes.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("expected an object")
        stopped = found.get("stopped")
        if not (
            found.keys() >= {"steps", "stopped"}
            and is_count(found["steps"])
            and (stopped is None or isinstance(stopped, str))
            and is_number(found.get("wall_s", 0.0))
            and isinstance(found.get("stream", {}), dict)
        ):
            raise ValueError("expected steps, a number, and stopped, a text or null")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path}: {error}. It is written at a run's end: without it, --resume goes "
            "on from the last checkpoint"
        ) from error
    return found


def _steps_in(folder: Path, kind: str) -> list[int]:
    names = folder.iterdir() if folder.is_dir() else ()
    found = (re.fullmatch(rf"{STEP_NAME}\.{kind}", path.name) for path in names)
    return sorted(int(match[1]) for match in found if match)
