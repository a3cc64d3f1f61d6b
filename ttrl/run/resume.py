"""Continuing a run: whether it can be, with these settings, and from where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ttrl.learner.trained_model import TrainedModel
from ttrl.report.display import Display
from ttrl.run.checkpoint import Checkpoint, find_newest
from ttrl.run.run_folder import RunFolder
from ttrl.run.saving import remove_after
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.launch import launched
from ttrl.types import UserError

MAY_DIFFER = (
    "checkpoint.",
    "limits.",
    "policy.backend",
    "memory.tokens_per_batch",
    "memory.gradient_checkpointing",
    "memory.recompute_share",
    "memory.offload_optimizer",
    "memory.offload_during_rollout",
    "memory.liger_kernels",
    "rollout.batch_size",
    "rollout.tensor_parallel",
    "rollout.gpu_memory_share",
    "rollout.kv_cache_gb",
    "rollout.engines",
    "rollout.engine_gpus",
    "rollout.stuck_after_s",
    "answers.workers",
    "answers.memory_mb",
    "threads",
)
"""Settings, or sections of them, that say how the work is done and not which: of these only
rounding depends."""

SAMPLED = 4096
"""Numbers of each weight, at least, that say which model it is."""

NOT_COMPUTED = {"architectures", "dtype", "transformers_version", "use_cache", "_name_or_path"}
"""Fields of a model's configuration that are not what it computes, or that the backend decides."""


def find_start(settings: Settings, folder: RunFolder, display: Display) -> Checkpoint:
    """Find where the run in ``folder`` can go on, after claiming it; nothing is changed.

    Raises:
        UserError: if there is no such run, it is finished or still going, was made with other
            settings, has no complete checkpoint, or its folder cannot be gone on with.
    """
    path = folder.path
    if not (path / "config.toml").is_file():
        raise UserError(
            f"--resume: there is no run in {path} (no config.toml): name its folder with "
            "--run-dir, or start it without --resume"
        )
    folder.claim()  # first: whoever has it may be about to finish
    if (path / "summary.json").exists():
        raise UserError(f"--resume: the run in {path} is finished, see its summary.json")
    config = path / "config.toml"
    started = "the run was started with other settings"
    again = f"Continue it as it was: ttrl train {config} --resume --run-dir {path}"
    for key in refuse_differences(settings_of(config), settings, started, again):
        display.note(f"continuing with another {key}")
    checkpoint, problems = find_newest(folder.checkpoints)
    for problem in problems:
        display.note(f"warning: not a complete checkpoint: {problem}")
    if checkpoint is None:
        raise UserError(
            f"--resume: {folder.checkpoints} holds no complete checkpoint "
            f"({'; '.join(problems) or 'nothing was saved'}): start again with another --run-dir, "
            f"or remove the run's folder{_after('. ', replay_command(folder, settings))}"
        )
    folder.lines_until(checkpoint.step)
    display.note(f"resuming from step {checkpoint.step} ({checkpoint.path})")
    return checkpoint


def go_back(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Remove what a killed run wrote after the checkpoint: all of it will be made again."""
    folder.remove_after(checkpoint.step)
    remove_after(folder.checkpoints, checkpoint.step)


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
    else:
        text += "; no checkpoint was saved"
        replay = replay or f"Start again with --run-dir {folder.free_name()}"
    return text + _after(". ", replay)


def replay_command(folder: RunFolder, settings: Settings) -> str:
    """Say what trains on a run's answers in a new folder; empty if there are none, or not all."""
    replayable = settings.reward.labels != "teacher" and settings.rollout.workflow == "single_turn"
    if not folder.last_sampled() or not replayable:  # see `ttrl.run.preflight`
        return ""
    ranks = f" --ranks {os.environ['WORLD_SIZE']}" if launched() else ""
    return (
        "To train on its answers without sampling them again, also with other settings of "
        f"[loss] or [reward]: ttrl train {folder.path / 'config.toml'} --replay "
        f"{folder.path / 'rollouts'} --run-dir {folder.free_name()}{ranks}"
    )


def _after(between: str, text: str) -> str:
    return between + text if text else ""


def after_an_interrupt(folder: RunFolder, settings: Settings) -> str:
    """Say what there is of a run that Ctrl-C has ended, and how it goes on."""
    if folder.can_go_on():
        return f"; {folder.path} holds a checkpoint: the same command with --resume continues"
    if how := how_to_go_on(folder, settings):
        return f". {how}"
    if folder.path.exists():
        return f"; {folder.path} holds no answers yet: remove it before you start again"
    return ""


def after_a_hang(folder: RunFolder) -> str:
    """Say what to do after a phase that took too long, without looking at the disk again."""
    return (
        "Raise that limit. The same command with --resume continues from the last checkpoint; "
        f"where there is none, ttrl train {folder.path / 'config.toml'} --replay "
        f"{folder.path / 'rollouts'} --run-dir NEW trains on what was sampled"
    )


def settings_of(config: Path) -> Settings:
    """Read the settings in a run's ``config.toml``; a UserError names that file."""
    try:
        return load_settings(str(config))
    except UserError as error:
        raise UserError(f"{config}: {error}") from error


def refuse_differences(before: Settings, now: Settings, what: str, advice: str) -> list[str]:
    """Return what differs and may, as "KEY = NEW (was OLD)".

    Args:
        before: settings that the run once had.
        now: those that it would be continued with.
        what: what is wrong if they differ.
        advice: what to do then.

    Raises:
        UserError: if something differs that may not.
    """
    then, here = (dict(_flat(s.model_dump())) for s in (before, now))
    differ = {
        key: f"{key} = {here.get(key)!r} (was {then.get(key)!r})"
        for key in sorted(then.keys() | here.keys())
        if then.get(key) != here.get(key)
    }
    # Nothing is sampled ahead of a checkpoint: then when they are taken decides what is sampled.
    fixed = "checkpoint.every" if now.rollout.overlap else None
    refused = [
        text for key, text in differ.items() if key == fixed or not key.startswith(MAY_DIFFER)
    ]
    if refused:
        raise UserError(f"--resume: {what}: {'; '.join(refused)}. {advice}")
    return list(differ.values())


def model_digests(policy: TrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """Compute digests of configuration and weights of a policy that has not been trained yet.

    All ranks call this together.
    """
    text = policy.model.config.to_json_string(use_diff=True)
    config = json.loads(text, object_hook=lambda d: {k: d[k] for k in d.keys() - NOT_COMPUTED})
    return {
        "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "weights": weights_digest(policy.named_weights(), dtype),
    }


def weights_digest(named: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> str:
    """Compute a digest that tells models apart.

    Of each weight, its name, its shape and so many numbers, evenly spread, that neither a large
    model costs much nor one that was trained, merged or quantized meanwhile looks the same. They
    are compared in ``model.dtype``, which is all that one of the backends keeps of them.
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].to("cpu", dtype).float()
        digest.update(repr((name, tuple(tensor.shape))).encode())
        digest.update((some + 0.0).numpy().tobytes())  # -0.0, which merging adapters may lose
    return digest.hexdigest()


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
