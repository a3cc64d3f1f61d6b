"""A checkpoint as an ordinary folder in the Hugging Face format, which other programs load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from ttrl.models import lora
from ttrl.models.pretrained import layer_of, load_outline, load_tokenizer
from ttrl.models.weight_files import WeightFiles
from ttrl.report.run_record import read_run
from ttrl.run.checkpoint import Checkpoint, IncompleteError, best_of, find_newest, named_as_ours
from ttrl.run.identity import policies_in, refuse_foreign, weights_digest
from ttrl.run.model_card import model_card
from ttrl.run.resume import settings_of
from ttrl.run.saved_model import save_model
from ttrl.settings import Settings
from ttrl.types import UserError


def export(
    source: Path,
    output: Path,
    which: int | Literal["newest", "best"],
    dtype: str | None,
    note: Callable[[str], object] = print,
    agent: int = 0,
) -> Checkpoint:
    """Write a checkpoint's weights, with configuration, tokenizer and card, to a new folder.

    Args:
        source: a run's folder, or one of its checkpoints.
        output: the folder to make.
        which: of a run's checkpoints: the newest complete one, the best by ``checkpoint.best``, or
            a step's.
        dtype: of the weights; None for the run's ``model.dtype``.
        note: is told what is wrong with newer ones.
        agent: whose policy to write, where each agent has its own; 0 is the first.

    Returns:
        The checkpoint.

    Raises:
        UserError: if there is no such checkpoint, it is damaged or another run's, or ``output``
            cannot be made.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} exists; name a new folder")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{output}: there is no folder {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{output}: cannot make a folder in {parent}; choose another place")
    run = _run_of(source)
    if parent.resolve().is_relative_to(run.resolve()):
        raise UserError(
            f"{output} is in the run's own folder {run}, in which --resume may remove it; choose "
            "another place"
        )
    checkpoint = _choose(source, run, which, note)
    settings = settings_of(run / "config.toml")
    with checkpoint.errors_as_user_error():
        refuse_foreign(checkpoint.state()["identity"], settings, checkpoint.path)
    dtype = dtype or settings.model.dtype
    kind = getattr(torch, dtype)
    card = model_card(read_run(run), checkpoint, dtype, agent)
    outline = load_outline(settings.model, kind)
    found = _weights(checkpoint, settings, outline, agent)
    weights = ((name, weight.to(kind)) for name, weight in found)
    save_model(output, outline, load_tokenizer(settings.model), weights, card)
    return checkpoint


def _weights(
    checkpoint: Checkpoint, settings: Settings, outline: PreTrainedModel, agent: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all parameters, layer by layer, in float32; with adapters merged, in ``model.dtype``.

    Raises:
        UserError: if there is no such agent, or they are not those of the model, whose ``outline``
            this is.
    """
    shapes = {name: parameter.shape for name, parameter in outline.named_parameters()}
    rank = settings.lora.rank
    with checkpoint.errors_as_user_error():
        state = checkpoint.state()
        run = state["identity"]
        every = run["sizes"].items()
        began_with = run["model"]["weights"]
    part, own = (f"agent_{agent}", f"agent_{agent}/weights/") if agent else ("policy", "weights/")
    sizes = {key.removeprefix(own): size for key, size in every if key.startswith(own)}
    if agent and not sizes:
        last = policies_in(run["sizes"]) - 1
        raise UserError(
            f"--agent {agent}: {checkpoint.path} has no policy of that number: "
            + (f"expected one from 0 to {last}" if last else "its agents share one; leave it out")
        )
    trained = shapes if rank is None else _adapters(shapes, sizes, rank)
    fits = all(sizes.get(name) == shape.numel() for name, shape in trained.items())
    if not fits or sizes.keys() - shapes.keys() - trained.keys():
        raise UserError(
            f"{checkpoint.path} holds other parameters than model.path = {settings.model.path!r} "
            "has: put back the model that the run began with"
        )
    files: WeightFiles | None = None
    if rank is not None:
        dtype = getattr(torch, settings.model.dtype)
        files = WeightFiles(settings.model, outline)
        if weights_digest(files.parameters(), dtype) != began_with:
            raise UserError(
                f"one of the weights of model.path = {settings.model.path!r} is not what it was "
                f"when {checkpoint.path} was saved, which holds adapters to them: put back the "
                "model that the run began with"
            )
    return _read(checkpoint, settings, shapes, trained, files, part)


def _read(
    checkpoint: Checkpoint,
    settings: Settings,
    shapes: Mapping[str, torch.Size],
    trained: Mapping[str, torch.Size],
    files: WeightFiles | None,
    part: str,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `_weights` gives of a ``part``; ``files`` hold what adapters are merged into."""
    for _, layer in groupby(shapes, layer_of):
        names = list(layer)
        if files is None:
            own = {name: trained[name] for name in names}
        else:
            own = {a: trained[a] for n in names for a in lora.adapter_names(n) if a in trained}
        keys = {name: f"{part}/weights/{name}" for name in own}
        flat = checkpoint.shards({keys[name]: shape.numel() for name, shape in own.items()})
        weights = {name: flat.pop(keys[name]).view(shape) for name, shape in own.items()}
        if files is None:
            yield from weights.items()
        else:
            dtype = getattr(torch, settings.model.dtype)
            base = [(name, files.read(name).to(dtype)) for name in names]
            yield from lora.merged([*base, *weights.items()], lora.scale(settings))


def _adapters(
    shapes: Mapping[str, torch.Size], sizes: Mapping[str, int], rank: int
) -> dict[str, torch.Size]:
    """Return the shapes of A and B beside all weights that have them among ``sizes``."""
    adapters: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        a, b = lora.adapter_names(name)
        if a in sizes and b in sizes:
            adapters |= {a: torch.Size((rank, shape[1])), b: torch.Size((shape[0], rank))}
    return adapters


def _run_of(source: Path) -> Path:
    """Return the run's folder, of itself or of one of its checkpoints."""
    source = source.absolute()
    for run in (source, source.parent.parent):
        if (run / "config.toml").is_file():
            return run
    raise UserError(
        f"{source} is no run and no checkpoint: expected a folder with a config.toml, or its "
        "checkpoints/step_..."
    )


def _choose(
    source: Path,
    run: Path,
    which: int | Literal["newest", "best"],
    note: Callable[[str], object],
) -> Checkpoint:
    folder = run / "checkpoints"
    path: Path | None = None
    if source.absolute() != run:
        if which != "newest":
            asked = "--best" if which == "best" else f"--step {which}"
            raise UserError(
                f"{source} is a checkpoint already, so {asked} names a second one; leave it out, "
                f"or name the run's folder {run}"
            )
        path = source
    elif isinstance(which, int):
        path = folder / f"step_{which:05d}"
    elif which == "best" and (path := best_of(folder)) is None:
        raise UserError(
            f"{folder}: no checkpoint has a score: the run was started without checkpoint.best"
        )
    if path is None:
        newest, problems = find_newest(folder)
        if newest is None:
            raise UserError(
                f"{folder} holds no complete checkpoint "
                f"({'; '.join(problems) or 'nothing was saved'})"
            )
        for problem in problems:
            note(f"warning: not a complete checkpoint: {problem}")
        return newest
    try:
        return Checkpoint.open(path)
    except IncompleteError as error:
        there = ", ".join(p.name for p in named_as_ours(folder)) or "nothing"
        raise UserError(
            f"{path} is not a complete checkpoint: {error}; {folder} holds {there} (how many are "
            "kept: checkpoint.keep, checkpoint.best)"
        ) from error
