"""Continuing a run: whether it can be, with these settings, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttrl.checkpoint import Checkpoint, find_newest, remove_after
from ttrl.config import Settings
from ttrl.recipe import load_settings
from ttrl.tracking import Display, RunFolder
from ttrl.types import UserError

MAY_DIFFER = (
    "checkpoint.",
    "limits.",
    "policy.backend",
    "policy.tokens_per_batch",
    "policy.gradient_checkpointing",
    "policy.offload_during_rollout",
    "rollout.batch_size",
    "rollout.tensor_parallel",
    "rollout.gpu_memory_share",
    "rollout.kv_cache_gb",
    "answers.workers",
    "answers.memory_mb",
    "threads",
)
"""Settings, or sections of them, that say how the work is done and not which: of these only
rounding depends."""


def find_start(settings: Settings, folder: RunFolder, display: Display) -> Checkpoint:
    """Where the run in ``folder`` can go on, after claiming it and saying so; nothing is changed.

    Raises:
        UserError: if there is no such run, it is finished or still going, was made with other
            settings, or has no complete checkpoint.
    """
    path = folder.path
    if not (path / "config.toml").is_file():
        raise UserError(
            f"--resume: there is no run in {path} (no config.toml): name its folder with "
            "--run-dir, or start it without --resume"
        )
    if (path / "summary.json").exists():
        raise UserError(f"--resume: the run in {path} is finished, see its summary.json")
    folder.claim()
    for key in _differences(path / "config.toml", settings):
        display.note(f"continuing with another {key}")
    checkpoint, problems = find_newest(folder.checkpoints)
    for problem in problems:
        display.note(f"warning: not a complete checkpoint: {problem}")
    if checkpoint is None:
        raise UserError(
            f"--resume: {folder.checkpoints} holds no complete checkpoint "
            f"({'; '.join(problems) or 'nothing was saved'}): start again with another --run-dir, "
            "or remove the run's folder"
        )
    display.note(f"resuming from step {checkpoint.step} ({checkpoint.path})")
    return checkpoint


def go_back(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Remove what a killed run wrote after the checkpoint: all of it will be made again."""
    folder.remove_after(checkpoint.step)
    remove_after(folder.checkpoints, checkpoint.step)


def _differences(config: Path, settings: Settings) -> list[str]:
    """What differs and may, as "KEY = NEW (was OLD)".

    Raises:
        UserError: if something differs that may not.
    """
    before, now = (dict(_flat(s.model_dump())) for s in (load_settings(str(config)), settings))
    differ = {
        key: f"{key} = {now.get(key)!r} (was {before.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    # Nothing is sampled ahead of a checkpoint: then when they are taken decides what is sampled.
    fixed = "checkpoint.every" if settings.rollout.overlap else None
    refused = [
        text for key, text in differ.items() if key == fixed or not key.startswith(MAY_DIFFER)
    ]
    if refused:
        raise UserError(
            f"--resume: the run was started with other settings: {'; '.join(refused)}. Continue it "
            f"as it was: ttrl train {config} --resume --run-dir {config.parent}"
        )
    return list(differ.values())


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
