"""What several commands share: their options, and how the program is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ttrl.settings.recipe import model_names, recipe_names
from ttrl.system.launch import gpu_count
from ttrl.types import UserError

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
    """Count the processes to start: as many as GPUs, unless another number is asked for."""
    gpus = gpu_count()
    if asked is not None and 0 < gpus < asked:
        raise UserError(f"--ranks {asked}: expected one per GPU, and this machine has {gpus}")
    return asked or max(1, gpus)


def refuse_output(output: Path | None, option: str = "--json") -> None:
    """Raise a UserError for a file that is there, or that cannot be made."""
    if output is not None and not output.parent.is_dir():
        raise UserError(f"{option} {output}: there is no folder {output.parent}")
    if output is not None and output.exists():
        raise UserError(f"{option} {output} exists; name a new file")
