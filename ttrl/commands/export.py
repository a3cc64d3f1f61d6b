"""``ttrl export``: a checkpoint as an ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ttrl.types import UserError

DType = Literal["float32", "bfloat16"]


def export_model(
    source: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    output: Annotated[Path, typer.Argument(help="The folder to make.")],
    step: Annotated[
        int | None,
        typer.Option(help="The checkpoint of this step.", show_default="the newest"),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint, by the run's checkpoint.best.")
    ] = False,
    dtype: Annotated[
        DType | None,
        typer.Option(help="Type of the weights.", show_default="the run's model.dtype"),
    ] = None,
) -> None:
    """Make an ordinary Hugging Face folder of a checkpoint."""
    if step is not None and best:
        raise UserError("--step and --best name two checkpoints; give one of them")
    from ttrl.run.export import export

    which: int | Literal["newest", "best"] = "best" if best else "newest"
    checkpoint = export(source, output, which if step is None else step, dtype)
    print(f"{output}: the model after step {checkpoint.step} ({checkpoint.path})")
