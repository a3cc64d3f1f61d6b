"""``ttrl export``: a checkpoint as an ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ttrl.types import UserError

DType = Literal["float32", "bfloat16"]


def export_model(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run's folder, or one of its checkpoints; with --push and no OUTPUT, a model "
            "that was exported before."
        ),
    ],
    output: Annotated[Path | None, typer.Argument(help="The folder to make.")] = None,
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
    agent: Annotated[
        int,
        typer.Option(min=0, help="Whose policy, of a run with rollout.policies = per_agent."),
    ] = 0,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Upload it to this repository of the Hugging Face hub, as HF_TOKEN or "
            "`hf auth login` allow.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: everybody may read it.")
    ] = False,
) -> None:
    """Make an ordinary Hugging Face folder of a checkpoint, with a model card; upload it."""
    if step is not None and best:
        raise UserError("--step and --best name two checkpoints; give one of them")
    if public and push is None:
        raise UserError("--public says who may read what --push uploads: give that as well")
    if output is None and push is None:
        raise UserError("name the folder to make as well: ttrl export RUN OUTPUT")
    if output is None and (step is not None or best or dtype is not None or agent):
        raise UserError(
            "--step, --best, --dtype and --agent say what to export: name OUTPUT as well"
        )
    repository = None
    if push is not None:
        from ttrl.run.hub import Repository, exported_card

        if output is None:
            exported_card(source)
        repository = Repository.find(push, public=public)
    if output is not None:
        from ttrl.run.export import export

        which: int | Literal["newest", "best"] = "best" if best else "newest"
        checkpoint = export(source, output, which if step is None else step, dtype, agent=agent)
        print(f"{output}: the model after step {checkpoint.step} ({checkpoint.path})")
    if repository is not None:
        print(f"uploaded: {repository.push(output or source)}")
