"""What several commands share: their options, and how the program is called."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl.settings.recipe import model_names, recipe_names
from ttrl.system.launch import gpu_count
from ttrl.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, for example seed=1. Repeatable."
    ),
]
RankCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Start so many processes on this machine, one per GPU. On several machines, start "
        "`-m ttrl.cli ...` with torchrun instead, or `--module ttrl.cli ...` with deepspeed "
        "--no_local_rank.",
        show_default="with zero3 all GPUs, else one process",
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the results to this file.")
]


def recipes(incomplete: str) -> list[str]:
    """List the recipes that begin so, for the shell's completion."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """List the model recipes that begin so, for the shell's completion."""
    return [name for name in model_names() if name.startswith(incomplete)]


def rank_count(asked: int | None) -> int:
    """Count the processes to start: as many as GPUs, unless another number is asked for.

    Raises:
        UserError: if more are asked for than there are GPUs.
    """
    gpus = gpu_count()
    if asked is not None and 0 < gpus < asked:
        raise UserError(f"--ranks {asked}: expected one per GPU, and this machine has {gpus}")
    return asked or max(1, gpus)


def say_written(console: Console, *files: Path | None) -> None:
    """Say which files a command has written."""
    if named := [str(file) for file in files if file is not None]:
        console.print(f"written: {', '.join(named)}", highlight=False, markup=False, soft_wrap=True)


def refuse_outputs(files: Mapping[str, Path | None]) -> None:
    """Raise a UserError for a file that is there, that cannot be made, or that two options name.

    Args:
        files: by the option that names one.
    """
    named: dict[Path, str] = {}
    for option, file in files.items():
        if file is None:
            continue
        if not file.parent.is_dir():
            raise UserError(f"{option} {file}: there is no folder {file.parent}")
        if file.exists():
            raise UserError(f"{option} {file} exists; name a new file")
        if other := named.get(file.resolve()):
            raise UserError(f"{other} and {option} both name {file}: name two files")
        named[file.resolve()] = option
        try:  # now, and not after hours of work
            with tempfile.TemporaryFile(dir=file.parent):
                pass
        except OSError as error:
            raise UserError(
                f"{option} {file}: no file can be written in {file.parent} ({error.strerror}); "
                "name another folder"
            ) from error
