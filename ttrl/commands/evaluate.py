"""``ttrl eval``: what models score on data sets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttrl.commands.options import (
    JsonFile,
    Overrides,
    RankCount,
    models,
    rank_count,
    recipes,
    refuse_output,
)
from ttrl.report.tables import Format
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.gpus import refuse_unseen_gpus
from ttrl.system.launch import is_main, launch, launched
from ttrl.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ttrl.report.results import EvaluationResult
    from ttrl.report.tables import TextTable
    from ttrl.system.ranks import Ranks

A_MODEL = "a model folder, hub name or model recipe, or a .json file of results (--json)"


Measured = Annotated[
    str,
    typer.Argument(help=f"What to measure: {A_MODEL}.", autocompletion=models, show_default=False),
]
Data = Annotated[
    list[str],
    typer.Argument(
        help="Questions with answers: .jsonl, .json, .parquet, .csv or .tsv files, "
        "hub:OWNER/NAME, arithmetic:train or arithmetic:held_out.",
        show_default=False,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="Take prompt and sampling settings from a recipe or a run's config.toml.",
        autocompletion=recipes,
    ),
]
Ks = Annotated[
    list[int] | None,
    typer.Option(
        "--k",
        help="Report pass@K and maj@K. Repeatable.",
        show_default="powers of two, and samples",
    ),
]
Against = Annotated[
    str | None, typer.Option(help=f"Show the gain over this starting model: {A_MODEL}.")
]
Also = Annotated[
    list[str] | None,
    typer.Option(help="Another model for a table of models by data sets. Repeatable."),
]
FromSamples = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|RUN",
        help="Score recorded answers: of --save-samples, or the last ones of a run.",
    ),
]
SaveSamples = Annotated[
    Path | None,
    typer.Option(metavar="FILE.jsonl", help="Also write all answers of MODEL to this file."),
]


def evaluate(
    model: Measured,
    data: Data,
    recipe: Recipe = None,
    k: Ks = None,
    against: Against = None,
    also: Also = None,
    from_samples: FromSamples = None,
    save_samples: SaveSamples = None,
    shown: Annotated[Format, typer.Option("--format", help="How to show it.")] = "console",
    output: JsonFile = None,
    overrides: Overrides = None,
    ranks: RankCount = None,
) -> None:
    """Measure pass@1, greedy, pass@k and maj@k of any model on any questions with answers."""
    refuse_output(output)
    refuse_output(save_samples, "--save-samples")
    others = [*([against] if against else []), *(also or [])]
    if ranks and (from_samples or any(not name.endswith(".json") for name in others)):
        raise UserError(
            "--ranks samples from one model: measure each by itself with --json FILE.json, then "
            "name these files in their place"
        )
    asking = Asking(data, recipe, k, overrides or [])
    for name in (model, *others):
        asking.check(name, recorded=name == model and from_samples is not None)
    if ranks and not launched():
        launch(rank_count(ranks), sys.argv[1:])
    refuse_unseen_gpus()
    from rich.console import Console

    from ttrl.report.results import results_json
    from ttrl.report.tables import write
    from ttrl.system.ranks import join_ranks, leave_ranks

    joined = join_ranks()
    console = Console(emoji=False, quiet=not is_main(), stderr=shown != "console")
    measure = partial(asking.measure, ranks=joined, console=console)
    measured = measure(model, from_samples=from_samples, save_samples=save_samples)
    base = measure(against) if against else []
    further = [result for name in also or [] for result in measure(name)]
    leave_ranks()
    if not is_main():
        return
    every = [*base, *measured, *further]
    if shown == "json":
        print(results_json(every), end="")
    else:
        write(_tables(measured, base, further), shown)
    if output is not None:
        output.write_text(results_json(every), encoding="utf-8")


@dataclass(frozen=True)
class Asking:
    """What is asked of every model."""

    data: Sequence[str]
    recipe: str | None
    k: Sequence[int] | None
    overrides: Sequence[str]

    def check(self, model: str, *, recorded: bool) -> None:
        """Raise a UserError for what can be seen of a model before anything is loaded."""
        if not model.endswith(".json"):
            for data in self.data:
                samples = self._settings(model, data).evaluation.samples
                if not recorded:
                    self._ks(samples)

    def measure(
        self,
        model: str,
        *,
        ranks: Ranks,
        console: Console,
        from_samples: Path | None = None,
        save_samples: Path | None = None,
    ) -> list[EvaluationResult]:
        """Return what a model scores on each data set."""
        from ttrl.answers import Grader
        from ttrl.evaluation import measuring
        from ttrl.report.display import Display

        if model.endswith(".json"):
            return measuring.measured_before(Path(model), self.data)
        every = [self._settings(model, data) for data in self.data]
        display = Display(console)
        with Grader(every[0].answers) as grader:
            evaluations = [
                measuring.load_evaluation(settings, grader, display) for settings in every
            ]
            if from_samples is None:
                sampled = measuring.sample_all(evaluations, ranks, display)
            else:
                sampled = [
                    measuring.read_samples(from_samples, evaluation, display)
                    for evaluation in evaluations
                ]
            if save_samples is not None and ranks.is_main:
                measuring.save_samples(save_samples, evaluations, sampled)
            return [
                replace(evaluation, ks=self._ks(min(len(g.alone) for g in groups))).score(
                    groups, None, model=model, sampling=None if from_samples is None else {}
                )
                for evaluation, groups in zip(evaluations, sampled, strict=True)
            ]

    def _settings(self, model: str, data: str) -> Settings:
        asked = ("evaluation.greedy=true", *self.overrides)
        return load_settings(self.recipe, model=model, data=data, overrides=asked)

    def _ks(self, samples: int) -> tuple[int, ...]:
        powers = [2**i for i in range(samples.bit_length())]
        ks = sorted({1, *(self.k or [*powers, samples])})
        if ks[0] < 1:
            raise UserError(f"--k {ks[0]}: expected 1 or more")
        if ks[-1] > samples:
            raise UserError(
                f"--k {ks[-1]}: expected at most as many as answers, evaluation.samples = "
                f"{samples}; raise it with --set evaluation.samples={ks[-1]}"
            )
        return tuple(ks)


def _tables(
    measured: Sequence[EvaluationResult],
    base: Sequence[EvaluationResult],
    further: Sequence[EvaluationResult],
) -> list[TextTable]:
    """Choose what to show: each evaluation or its gain, and where there are many, all in one."""
    from ttrl.report.evaluation_tables import gains_table, matrix_table, scores_table

    if base:
        tables = [gains_table(b, m) for b, m in zip(base, measured, strict=True)]
    else:
        tables = [scores_table(result) for result in measured]
    if further or (base and len(measured) > 1):
        tables.append(matrix_table([*measured, *further], base))
    return tables
