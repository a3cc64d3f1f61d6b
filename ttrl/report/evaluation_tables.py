"""Tables of evaluations: of one, of a gain, and of several models on several data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from ttrl.report.display import is_rate, signed
from ttrl.report.results import EvaluationResult, Mean
from ttrl.report.run_record import is_run
from ttrl.report.tables import TextTable
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

INTERVAL = "± is half of a 95 % interval, over questions."


def scores_table(result: EvaluationResult) -> TextTable:
    """Make the table of one evaluation: a row per score, a column per level."""
    rows = []
    for name in result.names:
        unit = 1.0 if name == "response_tokens" else 100.0
        levels = [f"{unit * result.mean(name, level).value:.1f}" for level in result.levels]
        rows.append((name.replace("_", " "), with_error(result.mean(name), unit), *levels))
    return TextTable(
        f"{result.model} on {_questions(result)}{_samples(result)}, in %",
        ("", f"all ({len(result.questions)})", *_at_levels(result)),
        tuple(rows),
        (INTERVAL,),
    )


def early_table(result: EvaluationResult) -> TextTable:
    """Make the table of an evaluation that stopped early: what was chosen, and what was saved."""
    answers, tokens, expected = (result.mean(n).value for n in ("answers", "tokens", "expected"))
    most = int(result.sampling["samples"])
    rows = []
    for name, shown, unit in (
        ("right", "right, in %", 100.0),
        ("answers", "answers begun", 1.0),
        ("tokens", "tokens", 1.0),
    ):
        levels = [f"{unit * result.mean(name, level).value:.1f}" for level in result.levels]
        rows.append((shown, with_error(result.mean(name), unit), *levels))
    return TextTable(
        f"{result.model} on {_questions(result)}, {result.stopped_early}, stopped early",
        ("", f"all ({len(result.questions)})", *_at_levels(result)),
        tuple(rows),
        (
            f"{answers:.1f} of {most} answers were begun per question, and "
            f"{100 * (1 - tokens / expected):.1f} % of the tokens saved: {most} whole ones would "
            f"have {expected:.0f}, if all are as long as the first.",
            INTERVAL,
        ),
    )


def gains_table(before: EvaluationResult, after: EvaluationResult) -> TextTable:
    """Make a table of before and after, with absolute and relative gains, also by level.

    Raises:
        UserError: if the two are no pair, see `refuse_unlike`.
    """
    refuse_unlike(before, after)
    rows = []
    names = [name for name in after.names if name in before.names]
    for name in names:
        for level in (None, *(after.levels if is_rate(name) else ())):
            unit = 1.0 if name == "response_tokens" else 100.0
            old, new = before.mean(name, level), after.mean(name, level)
            gain = after.gain(before, name, level)
            relative = f"{signed(100 * gain.value / old.value)} %" if old.value else ""
            rows.append(
                (
                    name.replace("_", " ") if level is None else f"  level={level}",
                    f"{unit * old.value:.1f}",
                    f"{unit * new.value:.1f}",
                    with_error(gain, unit, sign=True),
                    relative,
                )
            )
    notes = [f"The gain's {INTERVAL} Relative: of the score before."]
    if bound := upper_bound(before):
        maj, pass1 = before.mean(bound).value, after.mean("pass@1").value
        notes.append(
            f"Upper bound, {bound} before: {100 * maj:.1f}; pass@1 after is "
            f"{'above' if pass1 > maj else 'not above'} it, {100 * pass1:.1f}."
        )
    return TextTable(
        f"{before.model} → {after.model} on {_questions(after)}, in %",
        ("", "before", "after", "gain", "relative"),
        tuple(rows),
        tuple(notes),
    )


def matrix_table(
    measured: Sequence[EvaluationResult], base: Sequence[EvaluationResult], name: str = "pass@1"
) -> TextTable:
    """Make a table of several models on several data sets, with their gains over the base.

    Marked are cells of questions that the model was trained on, so the others are out of domain;
    models trained with the labels; and runs that differ in their seed alone have a row of mean and
    spread. What a model was trained on is known where it lies in its run's folder.

    Args:
        measured: one result for each model and data set.
        base: those of the starting model, on the same data sets; empty: there is none.
        name: the score.
    """
    data = list(dict.fromkeys(result.data for result in measured))
    models = list(dict.fromkeys(result.model for result in measured))
    found = {(result.model, result.data): result for result in measured}
    before = {result.data: result for result in base}
    runs = {model: run_of(model) for model in models}
    rows: list[tuple[str, ...]] = []
    if base:
        values = [f"{100 * before[d].mean(name).value:.1f}" for d in data]
        rows.append((f"{base[0].model} (before)", *values))
    for model in models:
        cells = [_cell(found[model, d], before.get(d), name, runs[model]) for d in data]
        run = runs[model]
        with_labels = run is not None and run.reward.labels == "ground_truth"
        rows.append((f"{model}{' (trained with labels)' if with_labels else ''}", *cells))
    rows += [
        (f"mean ± sd of seeds {seeds}", *(_spread([found[m, d] for m in same], name) for d in data))
        for seeds, same in _seeds(runs).items()
    ]
    if base and (bound := upper_bound(base[0])):
        bounds = [f"{100 * before[d].mean(bound).value:.1f}" for d in data]
        rows.append((f"upper bound: {bound} before", *bounds))
    notes = []
    if any(cell.endswith("*") for row in rows for cell in row[1:]):
        notes.append("* Trained on these questions; the others are out of domain.")
    return TextTable(f"{name} in %, and the gain", ("", *data), tuple(rows), tuple(notes))


def refuse_unlike(before: EvaluationResult, after: EvaluationResult) -> None:
    """Raise a UserError if two results were sampled in ways that make them no pair."""
    for name in ("temperature", "top_p", "max_new_tokens"):
        then, now = before.sampling.get(name), after.sampling.get(name)
        if then is not None and now is not None and then != now:
            raise UserError(
                f"{before.model} was measured on {before.data} with {name} = {then:g}, "
                f"{after.model} with {now:g}: measure both in the same way"
            )


def run_of(model: str) -> Settings | None:
    """Return the settings of the run that made a model, if it lies in that run's folder."""
    folder = Path(model).parent
    if Path(model).name != "model" or not is_run(folder):
        return None
    return load_settings(str(folder / "config.toml"))


def _seeds(runs: Mapping[str, Settings | None]) -> dict[str, list[str]]:
    """Group the models of runs that differ in their seed (and name) alone: "0, 1" -> models."""
    alike: dict[str, dict[int, str]] = {}
    for model, settings in runs.items():
        if settings is not None:
            same = settings.model_copy(update={"seed": 0, "name": ""}).to_toml()
            alike.setdefault(same, {})[settings.seed] = model
    return {
        ", ".join(map(str, sorted(by_seed))): list(by_seed.values())
        for by_seed in alike.values()
        if len(by_seed) > 1
    }


def _spread(results: Sequence[EvaluationResult], name: str) -> str:
    values = [100 * result.mean(name).value for result in results]
    return f"{fmean(values):.1f} ± {stdev(values):.1f}"


def _cell(
    result: EvaluationResult, before: EvaluationResult | None, name: str, run: Settings | None
) -> str:
    text = f"{100 * result.mean(name).value:.1f}"
    if before is not None:
        refuse_unlike(before, result)
        text += f" ({signed(100 * result.gain(before, name).value)})"
    return f"{text} *" if run is not None and _same_data(run.data.train, result.data) else text


def _same_data(one: str, other: str) -> bool:
    paths = Path(one), Path(other)
    return one == other or (all(p.exists() for p in paths) and paths[0].samefile(paths[1]))


def upper_bound(before: EvaluationResult) -> str | None:
    """Return the name of its largest vote, maj@n: the label accuracy that training starts with."""
    votes = [name for name in before.names if name.startswith("maj@")]
    return max(votes, key=lambda name: int(name.removeprefix("maj@")), default=None)


def with_error(mean: Mean, unit: float = 100.0, *, sign: bool = False) -> str:
    """Write a mean and its interval: "46.4 ± 3.1"."""
    error = "" if mean.half_width is None else f" ± {unit * mean.half_width:.1f}"
    return f"{signed(unit * mean.value) if sign else f'{unit * mean.value:.1f}'}{error}"


def _at_levels(result: EvaluationResult) -> list[str]:
    return [f"level={level} ({len(result.at(level))})" for level in result.levels]


def _questions(result: EvaluationResult) -> str:
    count = len(result.questions)
    return f"{count} question{'s' if count != 1 else ''} of {result.data}"


def _samples(result: EvaluationResult) -> str:
    samples = result.sampling.get("samples")
    return "" if samples is None else f", {samples:g} samples each"
