"""``ttrl eval``: what models score on data sets."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
    refuse_outputs,
    say_written,
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
    from ttrl.selection.selecting import Selecting
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
Select = Annotated[
    str | None,
    typer.Option(
        metavar="RULE,...",
        help="Choose among the answers to each question by these rules, and show how often each is "
        "right: majority, weighted, best-of-n, borda, self-certainty, deepconf, reflection.",
    ),
]
StopEarly = Annotated[
    bool,
    typer.Option(
        "--stop-early",
        help="With --select majority or deepconf alone: sample no further answers than the rule "
        "needs, and with deepconf break off those of low confidence.",
    ),
]
RewardModelName = Annotated[
    str | None,
    typer.Option(
        "--reward-model", metavar="NAME", help="What scores solutions, for weighted and best-of-n."
    ),
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
    select: Select = None,
    reward_model: RewardModelName = None,
    stop_early: StopEarly = False,
    shown: Annotated[Format, typer.Option("--format", help="How to show it.")] = "console",
    output: JsonFile = None,
    overrides: Overrides = None,
    ranks: RankCount = None,
) -> None:
    """Measure pass@1, greedy, pass@k and maj@k of any model on any questions with answers."""
    refuse_outputs({"--json": output, "--save-samples": save_samples})
    others = [*([against] if against else []), *(also or [])]
    if ranks and (from_samples or not all(map(is_result, others))):
        raise UserError(
            "--ranks samples from one model: measure each by itself with --json FILE.json, then "
            "name these files in their place"
        )
    if stop_early:
        beside = {"--from-samples": from_samples, "--save-samples": save_samples, "--k": k}
        _refuse_stop_early(select, {**beside, "--against": against, "--also": also})
    selecting = _selecting(select, reward_model, model, ranks, stop_early=stop_early)
    labels = () if selecting is None else selecting.overrides
    asking = Asking(data, recipe, k, overrides or [], labels)
    named = dict.fromkeys((model, *others))
    before = {name: asking.measured_before(name) for name in named if is_result(name)}
    if others:
        _refuse_early(before)
    if not is_result(model):
        asking.check(model, recorded=from_samples is not None)
    for name in others:
        if not is_result(name):
            asking.check(name, recorded=False)
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
    own = partial(measure, from_samples=from_samples, save_samples=save_samples)
    try:
        measured = before.get(model) or own(model, selecting=selecting)
        base = (before.get(against) or measure(against)) if against else []
        further = [one for name in also or [] for one in before.get(name) or measure(name)]
    except KeyboardInterrupt:
        if is_main():
            kept = save_samples is not None and save_samples.exists()
            left = f"; {save_samples} has the answers" if kept else "; nothing was written"
            print(f"ttrl: interrupted{left}", file=sys.stderr)
        raise typer.Exit(130) from None
    leave_ranks()
    if not is_main():
        return
    every = [*base, *measured, *further]
    if output is not None:  # first: what took hours is kept, even if it cannot be compared
        output.write_text(results_json(every), encoding="utf-8")
    if shown == "json":
        print(results_json(every), end="")
    else:
        write(_tables(measured, base, further), shown)
    say_written(console, save_samples, output)


@dataclass(frozen=True)
class Asking:
    """What is asked of every model."""

    data: Sequence[str]
    recipe: str | None
    k: Sequence[int] | None
    overrides: Sequence[str]
    labels: Sequence[str] = ()
    """Further overrides, with which a rule's own settings are set and checked."""

    def measured_before(self, path: str) -> list[EvaluationResult]:
        """Return the results of all data sets that a file has."""
        from ttrl.evaluation.measuring import measured_before

        return measured_before(Path(path), self.data)

    def check(self, model: str, *, recorded: bool) -> None:
        """Raise a UserError for what can be seen of a model before anything is loaded."""
        for data in self.data:
            samples = self._settings(model, data).evaluation.samples
            if not recorded:
                self._ks(samples)
            elif self.k:
                self._ks(max(self.k))  # how many answers there are is read later

    def measure(
        self,
        model: str,
        *,
        ranks: Ranks,
        console: Console,
        from_samples: Path | None = None,
        save_samples: Path | None = None,
        selecting: Selecting | None = None,
    ) -> list[EvaluationResult]:
        """Return what a model scores on each data set."""
        from ttrl.answers import Grader
        from ttrl.evaluation import measuring
        from ttrl.report.display import Display

        every = [self._settings(model, data) for data in self.data]
        display = Display(console)
        with Grader(every[0].answers) as grader, ExitStack() as stack:
            evaluations = [
                measuring.load_evaluation(settings, grader, display) for settings in every
            ]
            if from_samples is not None:
                of_tokens = selecting is not None and selecting.of_tokens
                sampled = [
                    measuring.read_samples(from_samples, e, display, of_tokens=of_tokens)
                    for e in evaluations
                ]
            elif selecting is not None:
                evaluations = list(map(selecting.noting, evaluations))
            if selecting is not None:
                selecting = selecting.loaded(every[0], display)
            pool = None
            if from_samples is None or (selecting is not None and selecting.asks_policy):
                pool = stack.enter_context(measuring.open_pool(every[0], ranks))
            if from_samples is None:
                assert pool is not None
                if selecting is not None and selecting.stop_early:
                    return [
                        selecting.online(evaluation, pool, display, model)
                        for evaluation in evaluations
                    ]
                sampled = [e.sample(pool, 0, display) for e in evaluations]
            if save_samples is not None and ranks.is_main:
                measuring.save_samples(save_samples, evaluations, sampled)
            results = []
            for evaluation, groups in zip(evaluations, sampled, strict=True):
                ks = self._ks(min(len(g.alone) for g in groups), from_samples)
                result = replace(evaluation, ks=ks).score(
                    groups, None, model=model, sampling=None if from_samples is None else {}
                )
                if selecting is not None:
                    chosen = selecting.select(evaluation, groups, ks, display, pool, ranks)
                    result = replace(result, selection=chosen)
                results.append(result)
            return results

    def _settings(self, model: str, data: str) -> Settings:
        asked = ("evaluation.greedy=true", *self.overrides)
        load = partial(load_settings, self.recipe, model=model, data=data)
        try:
            return load(overrides=(*asked, *self.labels))
        except UserError as error:
            if self.labels:
                load(overrides=asked)  # says what is wrong without them
                raise UserError(
                    "--select reflection asks the policy as in training with reward.labels = "
                    f'"reflection", and these settings do not go with that: {error}'
                ) from error
            raise

    def _ks(self, samples: int, recorded: Path | None = None) -> tuple[int, ...]:
        powers = [2**i for i in range(samples.bit_length())]
        ks = sorted({1, *(self.k or [*powers, samples])})
        if ks[0] < 1:
            raise UserError(f"--k {ks[0]}: expected 1 or more")
        if ks[-1] > samples and recorded is not None:
            raise UserError(
                f"--k {ks[-1]}: expected at most as many as there are answers to every question, "
                f"and to one {recorded} has {samples}; lower --k"
            )
        if ks[-1] > samples:
            raise UserError(
                f"--k {ks[-1]}: expected at most as many as answers, evaluation.samples = "
                f"{samples}; raise it with --set evaluation.samples={ks[-1]}"
            )
        return tuple(ks)


def is_result(name: str) -> bool:
    """Say whether what is to be measured was measured before: it names a file of results."""
    return name.endswith(".json")


def _refuse_early(before: Mapping[str, Sequence[EvaluationResult]]) -> None:
    """Raise a UserError for results, by their file, that have no scores to compare."""
    for name, found in before.items():
        if early := [result for result in found if result.stopped_early]:
            raise UserError(
                f"{name}: the results of {early[0].model} on {early[0].data} are of "
                "--stop-early, and have no scores to compare: measure it without"
            )


def _refuse_stop_early(select: str | None, beside: Mapping[str, object]) -> None:
    """Raise a UserError unless one rule that need not see all answers is asked for, and no more."""
    from ttrl.selection.online import ONLINE

    if (select or "").strip() not in ONLINE:
        raise UserError(
            f"--stop-early samples what one rule needs: expected --select {' or '.join(ONLINE)}, "
            f"got {'no --select' if select is None else f'--select {select}'}; other rules choose "
            "when all answers are there"
        )
    if given := [name for name, value in beside.items() if value]:
        raise UserError(
            f"--stop-early does not go with {given[0]}: it measures what is chosen, of answers "
            f"that are not all there; leave {given[0]} out, or --stop-early"
        )


def _selecting(
    select: str | None,
    reward_model: str | None,
    model: str,
    ranks: int | None,
    *,
    stop_early: bool,
) -> Selecting | None:
    """Return the rules that were asked for, if what they need is there."""
    if select is None:
        if reward_model is not None:
            raise UserError(
                f"--reward-model {reward_model} would be ignored without --select: add --select "
                "weighted,best-of-n"
            )
        return None
    if is_result(model):
        raise UserError(
            f"--select chooses among answers, and {model} has scores: name the model, with its "
            "answers by --from-samples FILE.jsonl"
        )
    if ranks and reward_model is not None:
        raise UserError(
            "--reward-model scores in one process: sample with --ranks and --save-samples "
            "FILE.jsonl first, then score with --from-samples FILE.jsonl"
        )
    from ttrl.selection.rules import make_rules, refuse_without_model

    rules = make_rules(select)
    refuse_without_model(rules, reward_model)
    if reward_model is not None:
        from ttrl.reward_models import check_reward_model

        check_reward_model(reward_model)
    from ttrl.selection.selecting import Selecting

    return Selecting(rules, reward_model, stop_early=stop_early)


def _tables(
    measured: Sequence[EvaluationResult],
    base: Sequence[EvaluationResult],
    further: Sequence[EvaluationResult],
) -> list[TextTable]:
    """Choose what to show: each evaluation or its gain, and where there are many, all in one."""
    from ttrl.report.evaluation_tables import (
        early_table,
        gains_table,
        matrix_table,
        scores_table,
    )
    from ttrl.report.selection import selection_tables

    if base:
        tables = [gains_table(b, m) for b, m in zip(base, measured, strict=True)]
    else:
        tables = [
            early_table(result) if result.stopped_early else scores_table(result)
            for result in measured
        ]
    for result in measured:
        if result.selection is not None:
            title = f"{result.model} on {result.data}"
            tables += selection_tables(title, result.selection)
    if further or (base and len(measured) > 1):
        tables.append(matrix_table([*measured, *further], base))
    return tables
