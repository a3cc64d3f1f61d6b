"""Training as a way to spend tokens: what test-time reinforcement learning reaches, and at what."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ttrl.api import train
from ttrl.report.display import Display
from ttrl.report.run_record import RunRecord, is_run, read_run
from ttrl.run.checkpoint import TEMPORARY
from ttrl.run.disk import disk
from ttrl.run.identity import other_work
from ttrl.run.run_folder import RunFolder
from ttrl.scaling.points import Point
from ttrl.settings import Settings
from ttrl.types import UserError

MEASURED = 6
"""How often accuracy is measured while a run goes on, if the settings do not say."""
SHOWN = 3
"""Settings in a message."""


def trained_points(settings: Settings, folder: Path, display: Display) -> Iterator[Point]:
    """Train on the questions of ``data.train``, and yield a point for each measured step.

    A finished run that is there already is read instead, one that was interrupted goes on, or
    begins again if it has no checkpoint: it makes the same steps again. What training took is
    shared by its questions; then each is answered once ("training"), or as often as
    ``evaluation.samples`` says, with a vote ("training, majority").
    """
    state = read_run(folder).state if is_run(folder) else None
    if state == "unfinished" and not RunFolder(folder).can_go_on():
        disk.rename(folder, _removed(folder))  # a kill amid the removal leaves no half of a run
        state = None
    for remains in (_removed(folder), *([folder] if _is_barely_begun(folder) else [])):
        if os.path.lexists(remains):
            disk.remove(remains)
    if state != "finished":
        run = settings_of_run(settings)
        train(run, run_dir=folder, resume=state is not None, console=display.console)
    yield from points_of(read_run(folder))


def refuse_other_run(settings: Settings, folder: Path) -> None:
    """Raise a UserError for a folder that can neither be read nor trained into."""
    if not is_run(folder):
        if not _is_barely_begun(folder):
            RunFolder(folder).refuse_existing()
        return
    record, wanted = read_run(folder), settings_of_run(settings)
    if differ := other_work(record.settings, wanted):
        raise UserError(
            f"{folder} holds a run of other settings; expected {'; '.join(differ[:SHOWN])}. Name "
            "another --run-dir, or give these settings again"
        )
    if record.state not in ("finished", "unfinished"):
        raise UserError(
            f"{folder} holds a run that is {record.state}: expected a finished one, one that was "
            "interrupted, or none. Name another --run-dir"
        )


def _removed(folder: Path) -> Path:
    """Name what a run that cannot go on is called until it is gone."""
    return folder.with_name(f"{folder.name}.removed")


def _is_barely_begun(folder: Path) -> bool:
    """Say whether a process that was killed, or a full disk, has left nothing but the folder."""
    ours = {folder / "rollouts", folder / f"config.toml{TEMPORARY}"}
    return folder.is_dir() and not folder.is_symlink() and {*folder.rglob("*")} <= ours


def refuse_few(settings: Settings, questions: int) -> None:
    """Raise a UserError if a step of the run would ask more questions than there are."""
    if questions < settings.rollout.questions_per_step:
        raise UserError(
            f"--methods training: rollout.questions_per_step = "
            f"{settings.rollout.questions_per_step}, but {settings.data.train} has {questions} "
            "questions; lower it"
        )


def settings_of_run(settings: Settings) -> Settings:
    """Return the settings of the run: measured on its own questions, several times."""
    data = settings.data.model_copy(update={"held_out": None})
    every = settings.evaluation.every or max(1, (settings.max_steps or 42) // MEASURED)
    evaluation = settings.evaluation.model_copy(update={"every": every, "greedy": False})
    return settings.model_copy(update={"data": data, "evaluation": evaluation})


def points_of(record: RunRecord) -> Iterator[Point]:
    """Yield the points of a run that has come to its end."""
    samples = record.settings.evaluation.samples
    for result in record.evaluations():
        if result.step is None or result.data != "train":
            continue
        asked = len(result.questions)
        steps = [line for line in record.steps if line["step"] <= result.step]
        sampled = math.fsum(line["rollout/tokens"] for line in steps) / asked
        read = math.fsum(line.get("agents/read_tokens", 0.0) for line in steps) / asked
        trained = math.fsum(RunRecord.of_policies(line, "tokens") for line in steps) / asked
        took = math.fsum(line["time/rollout_s"] + line["time/update_s"] for line in steps)
        answer = result.mean("response_tokens").value
        for name, method, n in (
            ("pass@1", "training", 1),
            (f"maj@{samples}", "training, majority", samples),
        ):
            if name in result.names:
                scores = tuple(q.scores[name] for q in result.questions)
                written = sampled + n * answer
                yield Point(method, result.step, scores, written, read, trained, took / asked)
