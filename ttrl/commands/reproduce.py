"""``ttrl reproduce``: a row of the paper, from its recipe to its numbers and its page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl.commands.options import Overrides, RankCount, rank_count, recipes
from ttrl.commands.train import Model
from ttrl.report.tables import TextTable, write
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings, recipe_names
from ttrl.system.launch import STAGE, end_with_parent, launched
from ttrl.types import UserError

if TYPE_CHECKING:
    from ttrl.reproduce.experiment import Experiment

Recipe = Annotated[
    str,
    typer.Argument(
        help=f"The path of a .toml file, or one of: {', '.join(recipe_names())}.",
        autocompletion=recipes,
        show_default=False,
    ),
]
Seeds = Annotated[
    str, typer.Option(metavar="N|LIST", help="So many seeds, from 0 on; or which: 0,1,7.")
]
RunDir = Annotated[
    Path | None, typer.Option(help="The folder of it all.", show_default="runs/reproduce-NAME")
]
Ood = Annotated[
    list[str] | None,
    typer.Option(
        help="Out-of-domain questions to measure on before and after, as for eval; or the name of "
        "a benchmark recipe. Repeatable.",
        show_default="of a benchmark the others",
    ),
]
NoLabels = Annotated[
    bool, typer.Option("--no-labels", help="Leave out training with the labels, an upper bound.")
]


def reproduce(
    recipe: Recipe,
    model: Model = None,
    seeds: Seeds = "1",
    overrides: Overrides = None,
    run_dir: RunDir = None,
    ood: Ood = None,
    no_labels: NoLabels = False,
    ranks: RankCount = None,
) -> None:
    """Make a row of the paper: before, after, upper bounds, out of domain, and a report.

    The same command goes on where it was interrupted, and makes only what is missing.
    """
    if launched():
        raise UserError("ttrl reproduce starts processes itself: use --ranks, and no launcher")
    if ranks is not None:
        rank_count(ranks)
    settings = load_settings(recipe, model=model, overrides=overrides or [])
    given = [override.partition("=")[0].strip() for override in overrides or []]
    if "seed" in given:
        raise UserError("--set seed=...: --seeds says which seeds, for example --seeds 7,")
    if settings.reward.labels == "ground_truth" or settings.reward.allow_ground_truth:
        raise UserError(
            "this recipe trains with the labels (reward.labels, reward.allow_ground_truth): "
            "reproduce does that by itself, beside the run that must not see them"
        )
    from ttrl.reproduce.experiment import Experiment, out_of_domain
    from ttrl.reproduce.questions import look_at
    from ttrl.reproduce.row import collect, result_json, tables
    from ttrl.reproduce.stages import run_stages, stages

    others = out_of_domain(settings, ood)
    known = look_at(settings, others)
    if settings.evaluation.every == 0 and "evaluation.every" not in given:
        settings = _measured_every(settings, known.measured_every)
    if not known.answers and not no_labels:
        _say(f"{settings.data.train} has no reference answers: no run is trained with labels")
    experiment = Experiment(
        run_dir or Path("runs") / f"reproduce-{settings.name}",
        settings,
        parse_seeds(seeds),
        known.answers and not no_labels,
        others,
        ranks,
    )
    experiment.refuse_other()
    experiment.prepare()
    try:
        run_stages(stages(experiment), ttrl, _say)
    except KeyboardInterrupt:
        print("ttrl: interrupted: the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    measured = collect(experiment)
    shown = tables(experiment, measured)
    _write(experiment.folder, result_json(experiment, measured), shown)
    write(shown, "console")
    _report(experiment)
    _say(f"numbers: {experiment.folder}/result.json, result.md, result.tex")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read "3" as the seeds 0, 1 and 2, and "0,7" or "7," as these.

    Raises:
        UserError: for anything else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and part.isascii() for part in parts):
        raise UserError(f"--seeds {text}: expected a number of seeds, or a list like 0,1,7")
    seeds = tuple(map(int, parts)) if "," in text else tuple(range(int(text)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: expected one seed or more, each of them once")
    return seeds


def ttrl(arguments: Sequence[str]) -> int:
    """Run ``ttrl`` in a process of its own, which ends if this one is killed; return its code.

    Ctrl-C reaches it as well. It does not say how it goes on, since this command goes on with it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ttrl.cli", *arguments],
        env={**os.environ, STAGE: "1"},
        preexec_fn=end_with_parent,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def _measured_every(settings: Settings, steps: int) -> Settings:
    """Return the settings of a run that is measured on its way, for its curves."""
    evaluation = settings.evaluation.model_copy(update={"every": steps})
    return settings.model_copy(update={"evaluation": evaluation})


def _write(folder: Path, numbers: str, shown: Sequence[TextTable]) -> None:
    """Write the results; they are made of what lies in the folder, so older ones are replaced."""
    files = {
        "result.json": numbers,
        "result.md": "\n".join(table.markdown() for table in shown),
        "result.tex": "\n".join(table.latex() for table in shown),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _report(experiment: Experiment) -> None:
    """Make the page of all runs."""
    page = experiment.folder / "report.html"
    runs = [str(experiment.run(arm, s)) for s in experiment.seeds for arm in experiment.arms]
    if code := ttrl(("report", *runs, "--out", str(page))):
        raise UserError(f"{page}: `ttrl report` ended with exit code {code}, and says why above")


def _say(line: str) -> None:
    print(line, flush=True)
