"""The command line: ``ttrl train``, ``eval``, ``plan``, ``export``, ``doctor``."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from ttrl import __version__, api
from ttrl.settings.recipe import load_settings, model_names, recipe_names
from ttrl.system.gpus import refuse_unseen_gpus
from ttrl.system.launch import gpu_count, is_main, keep_segments_whole, launch, launched
from ttrl.types import UserError

if TYPE_CHECKING:
    from rich.console import Console


# Heavy imports are inside the commands: help, dry runs and wrong settings answer at once.

app = typer.Typer(
    help="Test-time reinforcement learning: turn unlabeled questions into a better model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, for example seed=1. Repeatable."
    ),
]

DType = Literal["float32", "bfloat16"]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


Recipe = Annotated[
    str,
    typer.Argument(
        help=f"The path of a .toml file, or one of: {', '.join(recipe_names())}.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Starting model: a folder, a hub name, or a model recipe, which also brings "
        f"prompt and sampling settings: {', '.join(model_names())}.",
        show_default=False,
    ),
]
RunDir = Annotated[Path | None, typer.Option(help="The run's folder.", show_default="runs/NAME")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run from its last checkpoint.")
]
Replay = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN/rollouts",
        help="Train on the answers that a run sampled, without sampling; also on those of a "
        "run that failed.",
    ),
]
RankCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Start so many processes on this machine, one per GPU. On several machines, start "
        "`-m ttrl.cli train ...` with torchrun instead, or `--module ttrl.cli train ...` with "
        "deepspeed --no_local_rank.",
        show_default="with zero3 all GPUs, else one process",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and print all settings, and stop.")]


@app.command()
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
    from ttrl.answers import Grader
    from ttrl.rewards.scorer import GroupScorer

    settings = load_settings(recipe, model=model, overrides=overrides or [])
    # Refuses an estimator, extractor or option that is unknown.
    GroupScorer(settings, Grader(settings.answers))
    if dry_run:
        print(settings.to_toml(), end="")
        return
    from rich.console import Console

    from ttrl.run.run_folder import RunFolder

    folder = RunFolder(run_dir or Path("runs") / settings.name)
    if not launched() and (ranks is not None or settings.policy.backend == "zero3"):
        if not resume:
            folder.refuse_existing()  # before anything is started
        launch(_rank_count(ranks), sys.argv[1:])
    from ttrl.run.resume import after_an_interrupt

    console = Console(quiet=not is_main())
    try:
        run = api.train(
            settings, run_dir=folder.path, replay=replay, resume=resume, console=console
        )
    except KeyboardInterrupt:
        if is_main():
            print(f"ttrl: interrupted{after_an_interrupt(folder, settings)}", file=sys.stderr)
        raise typer.Exit(130) from None
    _show_result(run, console, replayed=replay is not None)


def _show_result(run: api.Run, console: Console, *, replayed: bool) -> None:
    """Show what a run has reached, and what can be done next."""
    from ttrl.report.display import result_table

    console.print()
    summary = run.summary
    if summary["before"] or summary["held_out"]["before"]:
        console.print(result_table(summary))
    elif summary["after"] or summary["held_out"]["after"]:
        console.print("begun as a replay: measured at the end only, see summary.json")
    else:
        why = "replayed" if replayed else "no reference answers"
        console.print(f"{why}: nothing was measured but the votes, in metrics.jsonl")
    console.print(
        f"run folder: {run.path} (settings, metrics, all voting answers, trained model)\n"
        f"measure it: {_command()} eval {run.path / 'model'} DATA "
        f"--recipe {run.path / 'config.toml'}\n"
        f"a real one: {_command()} train 1x24gb/qwen2.5-math-1.5b-lora   (on a GPU of 24 GB)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, hub name, or model recipe.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Questions with answers: a .jsonl, .json, .parquet, .csv or .tsv file, "
            "hub:OWNER/NAME, arithmetic:train or arithmetic:held_out."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Take prompt and sampling settings from a recipe or a config.toml."),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="Report pass@K and maj@K. Repeatable.", show_default="1, samples"),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Also write the scores to this file.")
    ] = None,
) -> None:
    """Measure pass@1, pass@k and maj@k of any model on any questions with answers."""
    settings = load_settings(recipe, model=model, data=data, overrides=overrides or [])
    samples = settings.evaluation.samples
    ks = sorted({1, *(k or [samples])})
    if ks[0] < 1:
        raise UserError(f"--k {ks[0]}: expected 1 or more")
    if ks[-1] > samples:
        raise UserError(
            f"--k {ks[-1]}: expected at most evaluation.samples = {samples}; raise it with "
            f"--set evaluation.samples={ks[-1]}"
        )
    _refuse_output(output)
    refuse_unseen_gpus()
    from rich.console import Console

    from ttrl.answers import Grader, make_extractor
    from ttrl.data.questions import load_questions
    from ttrl.evaluation.evaluation import Evaluation
    from ttrl.models.pretrained import load_outline, load_tokenizer
    from ttrl.report.display import Display, scores_table
    from ttrl.rollout.ends import refuse_absent_ids
    from ttrl.rollout.pool import make_pool

    display = Display(Console())
    tokenizer = load_tokenizer(settings.model)
    own = settings.data.as_held_out() if data == settings.data.held_out else settings.data
    asked = load_questions(data, own, tokenizer)
    display.rejected(asked.rejected)
    for remark in asked.remarks:
        display.note(remark)
    if not asked.key.answers:
        raise UserError(
            f"{data}: no row has an answer (data.answer_field = {own.answer_field!r}): "
            "there is nothing to measure against"
        )
    refuse_absent_ids(asked.questions, load_outline(settings.model), tokenizer)
    with Grader(settings.answers) as grader:
        extract = make_extractor(settings.answers.extract)
        evaluation = Evaluation(settings, extract, grader, data, asked, tuple(ks))
        with closing(make_pool(settings, tokenizer)) as pool:
            scores = evaluation.run(pool, 0, display)
    title = f"{len(asked.key.answers)} questions of {data}, {samples} samples each"
    display.console.print(scores_table(title, scores))
    if output is not None:
        output.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


@app.command("export")
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


@app.command("plan")
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
    _refuse_output(output)
    if model_config is not None and not model_config.is_file():
        raise UserError(f"--model-config {model_config}: there is no such file")
    from rich.console import Console

    from ttrl.models.pretrained import load_bare_outline
    from ttrl.plan import Machine, plan
    from ttrl.plan.report import show

    machine = Machine(gpus, gpu_memory).changed(assumptions or [])
    source = settings.model
    if model_config is not None:
        source = source.model_copy(update={"path": str(model_config), "revision": None})
    found = plan(settings, load_bare_outline(source), machine)
    show(found, Console())
    if output is not None:
        output.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    if not found.fits:
        print(f"ttrl: does not fit: {found.advice}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Show what is installed, what each part can do on this machine, and why not."""
    from rich.console import Console

    from ttrl.doctor.doctor import report

    healthy = report(Console())
    raise typer.Exit(0 if healthy else 1)


def _rank_count(asked: int | None) -> int:
    """Count the processes to start: as many as GPUs, unless another number is asked for."""
    gpus = gpu_count()
    if asked is not None and 0 < gpus < asked:
        raise UserError(f"--ranks {asked}: expected one per GPU, and this machine has {gpus}")
    return asked or max(1, gpus)


def _refuse_output(output: Path | None) -> None:
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--json {output}: there is no folder {output.parent}")
    if output is not None and output.exists():
        raise UserError(f"--json {output} exists; name a new file")


def _command() -> str:
    """Return how this program is called from here."""
    script = Path(sys.executable).with_name("ttrl")
    found = shutil.which("ttrl")
    if not script.exists() or (found is not None and Path(found).samefile(script)):
        return "ttrl"
    return os.path.relpath(script)


def _refuse_surrogates(argument: str) -> None:
    """Raise a UserError for an argument that is not UTF-8.

    Names and prompts are written as UTF-8, some of them at the end of a run only.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UserError(f"the argument {argument!r} is not UTF-8") from None


def main() -> None:
    """Run the command line: what the user can put right is one line and exit code 2."""
    keep_segments_whole()
    try:
        for argument in sys.argv:
            _refuse_surrogates(argument)
        app()
    except (UserError, OSError) as error:  # OSError: a full disk, no permission
        who = ""
        if not is_main():
            who = f"rank {os.environ['RANK']}: "
            with suppress(KeyboardInterrupt):
                time.sleep(10)  # mostly rank 0 says the same, and its end ends this one
        print(f"ttrl: {who}error: {error}", file=sys.stderr)
        _leave(2)
    except Exception:
        if not launched():
            raise
        traceback.print_exc()
        _leave(1)


def _leave(code: int) -> NoReturn:
    """End this process; a rank of several at once, as vLLM's usual exit waits for the others."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
