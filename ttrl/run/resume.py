"""Continuing a run: whether it can be, with these settings, and from where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttrl.report.display import Display
from ttrl.run.checkpoint import Checkpoint, find_newest, is_finished, named_as_ours
from ttrl.run.identity import EXTEND, refuse_differences
from ttrl.run.run_folder import RunFolder
from ttrl.run.saving import remove_after
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.settings.rollout import IN_TURNS
from ttrl.system.launch import command, launched
from ttrl.types import UserError


def find_start(settings: Settings, folder: RunFolder, display: Display) -> Checkpoint | None:
    """Find where the run in ``folder`` can go on, after claiming it; nothing is changed.

    Returns:
        The newest checkpoint; None: nothing was saved yet, and it begins again, with the questions
        that have arrived.

    Raises:
        UserError: if there is no such run, it is still going, is finished and not to be extended,
            was made with other settings, has no complete checkpoint, or its folder cannot be gone
            on with.
    """
    refuse_none(folder)
    folder.claim()  # first: whoever has it may be about to finish
    for key in changed_settings(folder, settings):
        display.note(f"continuing with another {key}")
    checkpoint, problems = find_newest(folder.checkpoints)
    for problem in problems:
        display.note(f"warning: not a complete checkpoint: {problem}")
    if checkpoint is None and folder.is_streamed():
        lost = _lost_saves(folder, settings)
        if not lost:
            folder.lines_until(-1)
            display.note("resuming from the beginning, with the questions that were accepted")
            return None
        problems += lost
    if checkpoint is None:
        raise UserError(
            f"--resume: {folder.checkpoints} holds no complete checkpoint "
            f"({'; '.join(problems) or 'nothing was saved'}): start again with another --run-dir, "
            f"or remove the run's folder{_after('. ', replay_command(folder, settings))}"
        )
    folder.lines_until(checkpoint.step)
    display.note(f"resuming from step {checkpoint.step} ({checkpoint.path})")
    return checkpoint


def _lost_saves(folder: RunFolder, settings: Settings) -> list[str]:
    """Say what shows that a stream's run without a complete checkpoint has had one.

    It must not begin again then, which would throw away what it has learned. Nothing shows a save
    that a killed process had begun.
    """
    lost = [f"{p.name} was complete" for p in named_as_ours(folder.checkpoints) if is_finished(p)]
    then, made = settings_of(folder.path / "config.toml"), folder.last_made()
    every = [of.checkpoint.every for of in (then, settings)]
    if 0 in every:
        return lost
    # A save is over before the next one begins, or else before the next step.
    limit = max(every) * (2 if then.checkpoint.asynchronous else 1)
    if made > limit or folder.is_finished():
        lost.append(f"{made} steps were made, with checkpoint.every = {max(every)}")
    return lost


def refuse_none(folder: RunFolder) -> None:
    """Raise a UserError unless the folder holds a run."""
    if not (folder.path / "config.toml").is_file():
        raise UserError(
            f"--resume: there is no run in {folder.path} (no config.toml): name its folder with "
            "--run-dir, or start it without --resume"
        )


def changed_settings(folder: RunFolder, settings: Settings) -> list[str]:
    """Name the settings that a run would go on with and was not started with.

    Raises:
        UserError: if it is finished and not to be extended, or may not go on with one of them.
    """
    if folder.is_finished():
        refuse_finished(folder, settings)
    started = "the run was started with other settings"
    again = f"Continue it as it was: {command()} train --resume {folder.path}"
    then = settings_of(folder.path / "config.toml")
    return refuse_differences(then, settings, started, again)


def refuse_finished(folder: RunFolder, settings: Settings) -> None:
    """Raise a UserError unless a finished run was asked for more steps than it was to make."""
    then, summary = settings_of(folder.path / "config.toml"), folder.summary()
    if summary.get("stream", {}).get("ended"):
        raise UserError(
            f"--resume: the run in {folder.path} is finished, since its stream has ended: train on "
            f"further questions in another one, with --model {folder.path / 'model'}"
        )
    more = _raised(then, summary["steps"])
    if summary["stopped"]:
        raise UserError(
            f"--resume: the run in {folder.path} was stopped for good: {summary['stopped']}; to "
            f"train on from its weights start another one, with --model {folder.path / 'model'}"
        )
    if all(getattr(then, name) == getattr(settings, name) for name in EXTEND):
        raise UserError(
            f"--resume: the run in {folder.path} is finished, see its summary.json; for further "
            f"steps raise where it ends: {more}"
        )


def _raised(then: Settings, steps: int) -> str:
    """Say which setting has ended a run, and a value that would not."""
    if then.max_steps is not None and steps >= then.max_steps:
        return f"--set max_steps={steps + 10} (and epochs, where those end it first)"
    return f"--set epochs={2 * then.epochs}"


def refuse_no_steps(folder: RunFolder, done: int, total: int | None) -> None:
    """Raise a UserError if a finished run would make no further step, or a run has made too many.

    How many there are is known only when the questions are loaded.
    """
    if total is None:
        return
    if done > total or (folder.is_finished() and done == total):
        raise UserError(
            f"--resume: the run in {folder.path} has made {done} steps, and max_steps, epochs and "
            f"questions allow {total}: raise what ends it"
        )


def go_back(folder: RunFolder, checkpoint: Checkpoint | None, settings: Settings) -> None:
    """Remove what a run wrote after the checkpoint, or at its end: all of it is made again.

    What a stream has brought, and what was answered, stays.
    """
    step = -1 if checkpoint is None else checkpoint.step
    folder.remove_after(step)
    remove_after(folder.checkpoints, step)
    then = settings_of(folder.path / "config.toml")
    ends = {name: getattr(settings, name) for name in EXTEND}
    if (extended := then.model_copy(update=ends)) != then:
        folder.rewrite_settings(extended)


@contextmanager
def nothing_lost(folder: RunFolder, settings: Settings) -> Iterator[None]:
    """Say in an error that ends this context `how_to_go_on`."""
    try:
        yield
    except (UserError, OSError) as error:
        what = str(error) or type(error).__name__
        between = "\n" if "\n" in what else ". "  # an engine's last log lines
        raise UserError(what + _after(between, how_to_go_on(folder, settings))) from error
    except Exception as error:  # shown with its traceback
        error.add_note(how_to_go_on(folder, settings))
        raise


def how_to_go_on(folder: RunFolder, settings: Settings) -> str:
    """Say what there is of a run that ended before its time, and what goes on with it.

    Empty if nothing has been sampled.
    """
    sampled, saved = folder.last_sampled(), folder.last_saved()
    if not sampled:
        return ""
    text = f"The answers up to step {sampled} are in {folder.path / 'rollouts'}"
    replay = replay_command(folder, settings)
    if saved:
        text += (
            f". The same command with --resume goes on from step {saved} (settings like "
            "memory.tokens_per_batch may differ; later answers are sampled again)"
        )
    elif folder.is_streamed():
        text += ". The same command with --resume begins again with the questions that have arrived"
    else:
        text += "; no checkpoint was saved"
        replay = replay or f"Start again with --run-dir {folder.free_name()}"
    return text + _after(". ", replay)


def replay_command(folder: RunFolder, settings: Settings) -> str:
    """Say what trains on a run's answers in a new folder; empty if there are none, or not all."""
    replayable = settings.reward.labels != "teacher" and settings.data.source == "list"
    replayable = replayable and settings.rollout.workflow in ("single_turn", *IN_TURNS)
    if not folder.last_sampled() or not replayable:  # see `ttrl.run.preflight`
        return ""
    ranks = f" --ranks {os.environ['WORLD_SIZE']}" if launched() else ""
    return (
        "To train on its answers without sampling them again, also with other settings of "
        f"[loss] or [reward]: {command()} train {folder.path / 'config.toml'} --replay "
        f"{folder.path / 'rollouts'} --run-dir {folder.free_name()}{ranks}"
    )


def _after(between: str, text: str) -> str:
    return between + text if text else ""


def after_an_interrupt(folder: RunFolder, settings: Settings) -> str:
    """Say what there is of a run that Ctrl-C has ended, and how it goes on."""
    if folder.is_streamed() and not folder.last_saved():
        return f"; {folder.path} holds its questions: the same command with --resume continues"
    if folder.can_go_on():
        return f"; {folder.path} holds a checkpoint: the same command with --resume continues"
    if how := how_to_go_on(folder, settings):
        return f". {how}"
    if folder.path.exists():
        return f"; {folder.path} holds no answers yet: remove it before you start again"
    return ""


def after_a_hang(folder: RunFolder, settings: Settings) -> str:
    """Say what to do after a phase that took too long, without looking at the disk again."""
    if settings.data.source == "stream":
        return "Raise that limit. The same command with --resume continues"
    return (
        "Raise that limit. The same command with --resume continues from the last checkpoint; "
        f"where there is none, {command()} train {folder.path / 'config.toml'} --replay "
        f"{folder.path / 'rollouts'} --run-dir NEW trains on what was sampled"
    )


def settings_of(config: Path) -> Settings:
    """Read the settings in a run's ``config.toml``; a UserError names that file."""
    try:
        return load_settings(str(config))
    except UserError as error:
        raise UserError(f"{config}: {error}") from error
