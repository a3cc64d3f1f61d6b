"""``ttrl serve``: a server that answers questions by votes, and learns from them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl.commands.options import Overrides
from ttrl.commands.train import Model, Recipe, RunDir
from ttrl.settings.recipe import load_settings
from ttrl.settings.serve_rules import SENT
from ttrl.types import UserError

if TYPE_CHECKING:
    from ttrl.serve.service import Service

TOKEN = "TTRL_TOKEN"
"""Name of the environment's variable that holds what requests must bring."""
SERVED = (
    "data.source=stream",
    f"data.train={SENT}",
    "data.held_out=none",
    "epochs=1",
    "evaluation.every=0",
    "stream.patience_s=0",
)
"""Settings of a server, whatever the recipe says; --set comes later."""


def serve(
    recipe: Recipe,
    model: Model = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any.")] = 8000,
) -> None:
    """Answer questions over HTTP by votes, and learn from them; the same command goes on."""
    from ttrl.report.run_record import is_run
    from ttrl.rewards.scorer import check_scoring
    from ttrl.run.resume import changed_settings
    from ttrl.run.run_folder import RunFolder

    settings = load_settings(recipe, model=model, overrides=[*SERVED, *(overrides or [])])
    check_scoring(settings)
    folder = RunFolder(run_dir or Path("runs") / settings.name)
    if resume := os.path.lexists(folder.path):
        if not is_run(folder.path):
            raise UserError(
                f"--run-dir {folder.path} exists and holds no run (no config.toml): name the "
                "folder of an earlier server to go on with, or a new one"
            )
        changed_settings(folder, settings)
    try:
        from ttrl.serve.service import Service
    except ImportError as error:
        raise UserError(f"ttrl serve needs {error.name}: pip install 'ttrl[serve]'") from error
    service = Service(settings, host, port, os.environ.get(TOKEN))

    from rich.console import Console

    from ttrl import trainer
    from ttrl.report.display import Display

    _stop_by_signals(service)
    try:
        summary = trainer.train(
            settings, folder, Display(Console(emoji=False)), resume=resume, serve=service.make
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    stopped = summary["stopped"]
    how = f"ended: {stopped}" if stopped else "the same command goes on"
    print(f"{summary['steps']} steps were learned from; all of it is in {folder.path}; {how}")


def _stop_by_signals(service: Service) -> None:
    """End the service when it is told to; at once, if it is told again."""

    def stop(number: int, frame: object) -> None:
        if not service.stop():
            raise KeyboardInterrupt
        print("ttrl: stopping; again: at once", file=sys.stderr)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
