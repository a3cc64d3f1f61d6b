"""``ttrl train``: a run, and what it says at its beginning and its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl import api
from ttrl.commands.options import Overrides, RankCount, models, rank_count, recipes
from ttrl.report.run_record import is_run
from ttrl.settings.recipe import load_settings, model_names, recipe_names
from ttrl.system.launch import STAGE, command, is_main, launch, launched
from ttrl.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

Recipe = Annotated[
    str,
    typer.Argument(
        help=f"The path of a .toml file, or one of: {', '.join(recipe_names())}. "
        "With --resume, a run's folder.",
        autocompletion=recipes,
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Starting model: a folder, a hub name, or a model recipe, which also brings "
        f"prompt and sampling settings: {', '.join(model_names())}.",
        show_default=False,
        autocompletion=models,
    ),
]
RunDir = Annotated[Path | None, typer.Option(help="The run's folder.", show_default="runs/NAME")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue a run from its last checkpoint, `--resume RUN`. A finished one makes more "
        "steps with --set max_steps=N, or epochs.",
    ),
]
Replay = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN/rollouts",
        help="Train on the answers that a run sampled, without sampling; also on those of a "
        "run that failed.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and print all settings, and stop.")]


def train(
    recipe: Recipe,
    model: Model = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    replay: Replay = None,
    ranks: RankCount = None,
    dry_run: DryRun = False,
) -> None:
    """Train on unlabeled questions; measure before and after if there is an answer key."""
    from ttrl.rewards.scorer import check_scoring

    if is_run(Path(recipe)):
        run_dir = _its_folder(Path(recipe), run_dir, resume=resume)
        recipe = str(run_dir / "config.toml")
    settings = load_settings(recipe, model=model, overrides=overrides or [])
    check_scoring(settings)
    if settings.rollout.workflow != "single_turn":
        from ttrl.rollout.workflows import make_workflow  # imports torch

        make_workflow(settings)
    if dry_run:
        print(settings.to_toml(), end="")
        return
    from rich.console import Console

    from ttrl.data.sources import refuse_absent
    from ttrl.run.resume import after_an_interrupt, changed_settings, refuse_none
    from ttrl.run.run_folder import RunFolder
    from ttrl.stream.inputs import refuse_no_input

    folder = RunFolder(run_dir or Path("runs") / settings.name)
    # Before anything is started, or torch is imported:
    if not launched():
        if resume:
            refuse_none(folder)
            changed_settings(folder, settings)
        else:
            folder.refuse_existing()
    refuse_absent(settings.data)
    if settings.data.source == "stream":
        refuse_no_input(settings.data.train)
    if not launched() and (ranks is not None or settings.policy.backend == "zero3"):
        launch(rank_count(ranks), sys.argv[1:])

    console = Console(emoji=False, quiet=not is_main())
    try:
        run = api.train(
            settings, run_dir=folder.path, replay=replay, resume=resume, console=console
        )
    except KeyboardInterrupt:
        if is_main() and STAGE not in os.environ:
            print(f"ttrl: interrupted{after_an_interrupt(folder, settings)}", file=sys.stderr)
        raise typer.Exit(130) from None
    _show_result(run, console, replayed=replay is not None)


def _its_folder(run: Path, run_dir: Path | None, *, resume: bool) -> Path:
    """Return the folder of a run that is named in the place of a recipe, to go on with it."""
    if not resume:
        raise UserError(
            f"{run} is a run's folder: go on with it by --resume, or start another run from its "
            f"weights, with --model {run / 'model'}"
        )
    if run_dir is not None and run_dir.resolve() != run.resolve():
        raise UserError(f"--resume {run} --run-dir {run_dir}: these are two folders; name one")
    return run


def _show_result(run: api.Run, console: Console, *, replayed: bool) -> None:
    """Show what a run has reached, how it went, and what can be done next."""
    from ttrl.report.curves import curve_line
    from ttrl.report.display import duration, result_table, stream_table
    from ttrl.report.verdict import next_steps, verdict

    console.print()
    summary, record = run.summary, run.record
    if summary["before"] or summary["held_out"]["before"]:
        console.print(result_table(summary))
    elif summary["after"] or summary["held_out"]["after"]:
        console.print("begun as a replay: measured at the end only, see summary.json")
    elif "stream" not in summary:
        why = "replayed" if replayed else "no reference answers"
        console.print(f"{why}: nothing was measured but the votes, in metrics.jsonl")
    if "stream" in summary:
        console.print(stream_table(summary["stream"]))
    lines = [
        curve_line(name, points, min(80, console.width))
        for name in ("vote/majority_ratio", "label/label_accuracy")
        if len(points := record.curve(name)) > 1
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{verdict(record)}.", highlight=False, markup=False)
    lines = [
        f"{summary['steps']} steps in {duration(summary['wall_s'])}; all of the run is in "
        f"{run.path}",
        *next_steps(record, command()),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
