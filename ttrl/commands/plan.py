"""``ttrl plan``: memory and time of a run before it is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ttrl.commands.options import Overrides, refuse_outputs
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


def plan_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe, as for train: a name or the path of a .toml file.", show_default=False
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Starting model, as for train.", show_default=False)
    ] = None,
    model_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The model's config.json: nothing else is read then, and no network is needed.",
        ),
    ] = None,
    reward_model_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The same of the reward model that the run loads, if it loads one.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the machine.")] = 1,
    gpu_memory: Annotated[
        float, typer.Option(min=1, metavar="GIB", help="Memory of each, as its maker states it.")
    ] = 40,
    overrides: Overrides = None,
    assumptions: Annotated[
        list[str] | None,
        typer.Option(
            "--machine",
            metavar="NAME=NUMBER",
            help="Another assumption about the machine, for example tflops=989 (see docs/plan.md). "
            "Repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Also write the plan to this file.")
    ] = None,
) -> None:
    """Show what every GPU would hold, whether it fits, and how long a step would take."""
    settings = load_settings(recipe, model=model, overrides=overrides or [])
    refuse_outputs({"--json": output})
    configs = {"--model-config": model_config, "--reward-model-config": reward_model_config}
    for option, file in configs.items():
        if file is not None and not file.is_file():
            raise UserError(f"{option} {file}: there is no such file")
    from rich.console import Console

    from ttrl.models.pretrained import load_bare_outline
    from ttrl.plan import Machine, plan
    from ttrl.plan.report import show

    machine = Machine(gpus, gpu_memory).changed(assumptions or [])
    source = settings.model
    if model_config is not None:
        source = source.model_copy(update={"path": str(model_config), "revision": None})
    try:
        outline = load_bare_outline(source)
    except UserError as error:
        if model_config is not None:
            raise
        raise UserError(
            f"{error}. For a plan its config.json is enough: --model-config FILE"
        ) from error
    found = plan(settings, outline, machine, reward_model_config)
    show(found, Console(emoji=False))
    if output is not None:
        output.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    if not found.fits:
        print(f"ttrl: does not fit: {found.advice}", file=sys.stderr)
        raise typer.Exit(1)
