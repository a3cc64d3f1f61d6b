"""A checkpoint as an ordinary folder in the Hugging Face format, which other programs load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from ttrl.checkpoint import Checkpoint, IncompleteError, best_of, find_newest
from ttrl.pretrained import load_outline, load_tokenizer
from ttrl.recipe import load_settings
from ttrl.tracking import save_model
from ttrl.types import UserError


def export(
    source: Path, output: Path, which: int | Literal["newest", "best"], dtype: str | None
) -> Checkpoint:
    """Write a checkpoint's weights, with configuration and tokenizer, to a new folder.

    Args:
        source: a run's folder, or one of its checkpoints.
        output: the folder to make.
        which: of a run's checkpoints: the newest, the best by ``checkpoint.best``, or a step's.
        dtype: of the weights; None for the run's ``model.dtype``.

    Returns:
        The checkpoint.

    Raises:
        UserError: if there is no such checkpoint, it is damaged, or ``output`` exists.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} exists; name a new folder")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.absolute().parent}")
    run = _run_of(source)
    checkpoint = _choose(source, run, which)
    settings = load_settings(str(run / "config.toml"))
    kind = getattr(torch, dtype or settings.model.dtype)
    model = load_outline(settings.model).to(kind)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sizes = checkpoint.state()["sizes"]
    if sizes != {name: shape.numel() for name, shape in shapes.items()}:
        raise UserError(
            f"{checkpoint.path} holds other parameters than model.path = {settings.model.path!r} "
            f"of {run / 'config.toml'}: put back the model that the run began with"
        )
    flat = checkpoint.shares(("weights",), sizes)
    weights = {name: flat[f"weights/{name}"].view(shapes[name]).to(kind) for name in shapes}
    save_model(output, model, weights, load_tokenizer(settings.model))
    return checkpoint


def _run_of(source: Path) -> Path:
    """The run's folder, of itself or of one of its checkpoints."""
    source = source.absolute()
    for run in (source, source.parent.parent):
        if (run / "config.toml").is_file():
            return run
    raise UserError(
        f"{source} is no run and no checkpoint: expected a folder with a config.toml, or its "
        "checkpoints/step_..."
    )


def _choose(source: Path, run: Path, which: int | Literal["newest", "best"]) -> Checkpoint:
    folder = run / "checkpoints"
    path: Path | None = None
    if source.absolute() != run:
        path = source
    elif isinstance(which, int):
        path = folder / f"step_{which:05d}"
    elif which == "best" and (path := best_of(folder)) is None:
        raise UserError(f"{folder}: no checkpoint has a score; see checkpoint.best")
    if path is None:
        newest, problems = find_newest(folder)
        if newest is None:
            raise UserError(
                f"{folder} holds no complete checkpoint "
                f"({'; '.join(problems) or 'nothing was saved'})"
            )
        return newest
    try:
        return Checkpoint.open(path)
    except IncompleteError as error:
        there = ", ".join(sorted(p.name for p in folder.glob("step_*"))) or "nothing"
        raise UserError(
            f"{path} is not a complete checkpoint: {error}; {folder} holds {there}"
        ) from error
