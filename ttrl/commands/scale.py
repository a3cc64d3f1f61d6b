"""``ttrl scale``: which way to spend tokens is best on a data set."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl.commands.options import JsonFile, Overrides, models, recipes, refuse_outputs, say_written
from ttrl.report.tables import Format
from ttrl.settings import Settings
from ttrl.settings.errors import did_you_mean
from ttrl.settings.recipe import load_settings
from ttrl.settings.rollout import IN_TURNS
from ttrl.system.gpus import refuse_unseen_gpus
from ttrl.system.launch import launched
from ttrl.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ttrl.evaluation.evaluation import Evaluation
    from ttrl.models.saved_policies import SavedPolicy
    from ttrl.report.display import Display
    from ttrl.reward_models import RewardModel
    from ttrl.rollout.pool import RolloutPool
    from ttrl.scaling import Point
    from ttrl.scaling.folder import ScaleFolder

SHIPPED = ("majority", "best-of-n", "weighted", "beam", "dvts", *IN_TURNS, "training")
"""The names of `ttrl.scaling.METHODS`, for help and mistakes before anything heavy is loaded."""
JUDGED = SHIPPED[1:5]
"""Those that ask a reward model."""
SEARCHING = JUDGED[2:]
"""Those that go on with paths."""
WIDTH = 4
"""How often a path goes on, if nobody says."""

Model = Annotated[
    str,
    typer.Argument(
        help="A model folder, hub name or model recipe.", autocompletion=models, show_default=False
    ),
]
Data = Annotated[
    str, typer.Argument(help="Questions with answers, as for eval.", show_default=False)
]
Methods = Annotated[
    str, typer.Option(help=f"Ways to spend tokens, by commas: {', '.join(SHIPPED)}.")
]
Counts = Annotated[
    list[int] | None,
    typer.Option("--n", help="Answers per question. Repeatable.", show_default="1, 4, 16, 64"),
]
Budgets = Annotated[
    list[float] | None,
    typer.Option(
        "--budget",
        metavar="TOKENS",
        help="Say what is best within so many tokens per question. Repeatable.",
        show_default="powers of two",
    ),
]
RewardModelName = Annotated[
    str | None,
    typer.Option(
        "--reward-model", help="tiny-prm, KIND:PATH or FILE.py:FUNCTION; see reward_model settings."
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        help="Keep what is measured in this folder, at once, with the run of training; the same "
        "command goes on in it, and makes only what is missing."
    ),
]
Width = Annotated[
    int | None,
    typer.Option(min=1, help="beam, dvts: how often a path goes on.", show_default="4"),
]
ReadFactor = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Sampled tokens that one read by a reward model or an agent counts as.",
        show_default="1",
    ),
]
UpdateFactor = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="training: sampled tokens that a token that is trained on counts as.",
        show_default="3",
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.svg|FILE.html", help="Also draw the curves.")
]


def scale(
    model: Model,
    data: Data,
    methods: Methods = "majority",
    counts: Counts = None,
    budgets: Budgets = None,
    reward_model: RewardModelName = None,
    width: Width = None,
    read_factor: ReadFactor = None,
    update_factor: UpdateFactor = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Sample, and train, as a recipe says.", autocompletion=recipes),
    ] = None,
    run_dir: RunDir = None,
    plot: Plot = None,
    shown: Annotated[Format, typer.Option("--format", help="How to show it.")] = "console",
    output: JsonFile = None,
    overrides: Overrides = None,
) -> None:
    """Measure accuracy against tokens: votes, a reward model's choice, search, agents, training."""
    refuse_outputs({"--json": output, "--plot": plot})
    names = _methods(methods, reward_model, run_dir)
    _refuse_unused(names, width, read_factor, update_factor)
    width = width or WIDTH
    ns = _counts(names, counts or [1, 4, 16, 64], width)
    within = _budgets(budgets or [])
    if plot is not None and plot.suffix not in (".svg", ".html"):
        raise UserError(f"--plot {plot}: expected a file that ends with .svg or .html")
    asked = (*(overrides or []), f"evaluation.samples={ns[-1]}", "evaluation.greedy=false")
    settings = load_settings(recipe, model=model, data=data, overrides=asked)
    _refuse_uneven(settings, names, ns)
    if launched():
        raise UserError("ttrl scale works in one process: start it without torchrun or deepspeed")
    refuse_unseen_gpus()
    from rich.console import Console

    from ttrl.report.scaling_plot import scaling_page, scaling_svg
    from ttrl.report.tables import write
    from ttrl.scaling import Factors
    from ttrl.scaling import report as reported
    from ttrl.scaling.points import budgets_of

    console = Console(emoji=False, stderr=shown != "console")
    known = {"read": read_factor, "trained": update_factor}
    factors = Factors(**{name: value for name, value in known.items() if value is not None})
    try:
        points = _measure(settings, names, ns, reward_model, width, run_dir, console)
    except KeyboardInterrupt:
        print("ttrl: interrupted; --json and --plot were not written", file=sys.stderr)
        raise typer.Exit(130) from None
    within = within or budgets_of(points, factors)
    title = f"{model} on {data}"
    tables = [
        reported.points_table(points, factors, title),
        reported.budgets_table(points, within, factors, "Best within a budget"),
    ]
    about = {"model": model, "data": data, "reward_model": reward_model, "width": width}
    text = reported.scale_json(points, within, factors, about)
    if shown == "json":
        print(text, end="")
    else:
        write(tables, shown)
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if plot is not None:
        curves = reported.curves_of(points, factors)
        svg = scaling_svg(curves, title, reported.cost_note(factors))
        page = scaling_page(svg, tables, title) if plot.suffix == ".html" else svg
        plot.write_text(page, encoding="utf-8")
    say_written(console, output, plot)


def _methods(given: str, reward_model: str | None, run_dir: Path | None) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names or [""]:
        if name not in SHIPPED:
            raise UserError(
                f"--methods {given!r}: {name!r} is unknown{did_you_mean(name, SHIPPED)}; expected "
                f"some of {', '.join(SHIPPED)}"
            )
    judged = [name for name in names if name in JUDGED]
    if judged and reward_model is None:
        raise UserError(
            f"--methods {given!r}: {judged[0]} asks a reward model, and none is named: add "
            "--reward-model tiny-prm (for the embedded task), KIND:PATH or FILE.py:FUNCTION"
        )
    if reward_model is not None and not judged:
        raise UserError(
            f"--reward-model {reward_model!r} would be ignored: none of {given!r} asks one; add "
            f"one of {', '.join(JUDGED)} to --methods"
        )
    if "training" in names and run_dir is None:
        raise UserError("--methods: training needs a folder for its run: add --run-dir FOLDER")
    if reward_model is not None:
        from ttrl.reward_models import check_reward_model

        check_reward_model(reward_model)
    return list(dict.fromkeys(names))


def _refuse_unused(
    names: list[str], width: int | None, read_factor: float | None, update_factor: float | None
) -> None:
    """Raise a UserError for an option that no method looks at, or a number that is none."""
    for option, value, users in (
        ("--width", width, SEARCHING),
        ("--read-factor", read_factor, (*JUDGED, *IN_TURNS, "training")),
        ("--update-factor", update_factor, ("training",)),
    ):
        if value is None:
            continue
        if not math.isfinite(value):
            raise UserError(f"{option} {value}: expected a finite number")
        if not set(users) & set(names):
            raise UserError(
                f"{option} {value:g} would be ignored: add {' or '.join(users)} to --methods"
            )


def _budgets(given: list[float]) -> list[float]:
    """Return the budgets, sorted."""
    for budget in given:
        if not 0 < budget < math.inf:
            raise UserError(f"--budget {budget:g}: expected a number of tokens above 0")
    return sorted(set(given))


def _counts(names: list[str], counts: list[int], width: int) -> list[int]:
    """Return the numbers of answers, sorted."""
    if min(counts) < 1:
        raise UserError(f"--n {min(counts)}: expected 1 or more")
    searches = [name for name in names if name in SEARCHING]
    if searches and not any(n % width == 0 for n in counts):
        raise UserError(
            f"--n {', '.join(map(str, counts))}: {searches[0]} needs a multiple of --width "
            f"{width}; add --n {4 * width}"
        )
    return sorted(set(counts))


def _refuse_uneven(settings: Settings, names: list[str], counts: list[int]) -> None:
    if talks := [name for name in names if name in IN_TURNS]:
        from ttrl.scaling.conversations import refuse_uneven

        for name in talks:
            refuse_uneven(settings, name, counts)


def _measure(
    settings: Settings,
    names: list[str],
    counts: list[int],
    reward_model: str | None,
    width: int,
    run_dir: Path | None,
    console: Console,
) -> list[Point]:
    """Load the questions, and return the points of all methods; a failure says where they are."""
    from ttrl.answers import Grader
    from ttrl.evaluation.measuring import load_evaluation
    from ttrl.report.display import Display
    from ttrl.scaling.folder import ScaleFolder
    from ttrl.scaling.training import refuse_few
    from ttrl.system.rng import make_repeatable

    make_repeatable(settings.threads, settings.seed)
    display = Display(console)
    with Grader(settings.answers) as grader:
        # Of answers in turns, each method has its own: the shared ones are to the question alone,
        # whatever workflow trains.
        evaluation = replace(load_evaluation(settings, grader, display), conversation=None)
        if "training" in names:
            refuse_few(settings, len(evaluation.asked.questions))
        if run_dir is None:
            return _points(evaluation, names, counts, reward_model, width, None, display)
        folder = ScaleFolder(run_dir, evaluation)
        with folder.open():
            _refuse_other(folder, settings, names, counts, reward_model, width)
            try:
                return _points(evaluation, names, counts, reward_model, width, folder, display)
            except BaseException:
                if folder.has_something:
                    print(
                        f"ttrl: what was measured is in {run_dir}, and the same command goes on",
                        file=sys.stderr,
                    )
                raise


def _refuse_other(
    folder: ScaleFolder,
    settings: Settings,
    names: list[str],
    counts: list[int],
    reward_model: str | None,
    width: int,
) -> None:
    """Raise a UserError if the folder has what is asked for, measured in another way."""
    from ttrl.scaling.methods import about_of
    from ttrl.scaling.training import refuse_other_run

    folder.refuse_other_scores(reward_model)
    for name in names:
        if name == "training":
            refuse_other_run(settings, folder.training)
        else:
            folder.kept(name, about_of(name, counts, width, reward_model))


def _points(
    evaluation: Evaluation,
    names: list[str],
    counts: list[int],
    reward_model: str | None,
    width: int,
    folder: ScaleFolder | None,
    display: Display,
) -> list[Point]:
    """Load what is needed, and measure one method after the other."""
    from ttrl.reward_models import make_reward_model
    from ttrl.scaling import Measuring
    from ttrl.scaling.conversations import policies_of
    from ttrl.scaling.methods import measured

    settings = evaluation.settings
    policies = policies_of(settings, [name for name in names if name in IN_TURNS])
    model = None if reward_model is None else make_reward_model(reward_model, settings)
    points: list[Point] = []

    def measure(name: str) -> None:
        for point in measured(name, on):
            points.append(point)
            display.note(
                f"{point.method} {point.n}: {100 * point.accuracy.value:.1f} %, "
                f"{point.sampled:,.0f} tokens sampled per question"
            )

    display.note(
        f"{settings.model.path} on {len(evaluation.asked.key.answers)} questions of "
        f"{settings.data.train}, up to {counts[-1]} answers to each: {', '.join(names)}"
    )
    if left := [n for n in counts if n % width] if set(SEARCHING) & set(names) else []:
        display.note(
            f"{' and '.join(SEARCHING)} leave out n = {', '.join(map(str, left))}: no multiple "
            f"of --width {width}"
        )
    named = None if model is None or reward_model is None else (reward_model, model)
    open_pool = partial(_pool, settings, model, policies)
    on = Measuring(evaluation, open_pool, named, counts, width, display, folder)
    try:
        for name in (n for n in names if n != "training"):
            measure(name)
    finally:
        on.close()
    if "training" in names:  # its run has an engine of its own; two of vLLM end each other
        measure("training")
    return points


def _pool(
    settings: Settings, model: RewardModel | None, policies: Sequence[SavedPolicy]
) -> RolloutPool:
    """Load the model that is measured."""
    from ttrl.models.pretrained import load_tokenizer
    from ttrl.rollout import pool as pools

    if model is not None and model.step not in settings.rollout.stop:
        # An engine must know beforehand that it will read text; what is asked says where to stop.
        stops = (*settings.rollout.stop, model.step)
        rollout = settings.rollout.model_copy(update={"stop": stops})
        settings = settings.model_copy(update={"rollout": rollout})
    pool = pools.make_pool(settings, load_tokenizer(settings.model))
    pool.policies = policies
    return pool
