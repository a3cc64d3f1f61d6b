"""Several agents against one and a majority, at equal calls: untrained, and trained alone or so.

    .venv/bin/python bench/agents.py                all that is missing, and the tables
    .venv/bin/python bench/agents.py --show         run nothing
    .venv/bin/python bench/agents.py --show --write     and write the tables of docs/agents.md
    .venv/bin/python bench/agents.py --models tiny-base --seeds 0 --steps 1 --out tiny.json

On the embedded task, with the model that ships and with one that has learned to read solutions
before a question (`bench/reader.py`). Every run has one thread, 24 answers a question in all turns
together, and is kept in ``bench/results/agents.json`` at once; it is not made again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reader
from kept_runs import KeptRuns, command_line, counted, spread
from machine import ROOT
from pages import marked, write_into
from quiet_run import quiet_run
from rich.console import Console

from ttrl.report.tables import TextTable

if TYPE_CHECKING:
    from ttrl.report.results import EvaluationResult
    from ttrl.rollout.pool import RolloutPool
    from ttrl.settings import Settings

RESULTS = ROOT / "bench" / "results" / "agents.json"
PAGE = ROOT / "docs" / "agents.md"
COMMON = [
    "threads=1",
    "data.held_out=none",
    "epochs=2",
    "rollout.questions_per_step=8",
    "rollout.votes=24",
    "policy.trained_samples=24",
    "policy.sequences_per_update=96",
    "checkpoint.every=0",
    "report.every_s=0",
]
WORKFLOWS = {
    "debate 2x2": ["rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2"],
    "debate 3x2": ["rollout.workflow=debate", "rollout.agents=3", "rollout.rounds=2"],
    "mixture 3+1": ["rollout.workflow=mixture", "rollout.agents=3", "rollout.rounds=1"],
    "mixture 5+1": ["rollout.workflow=mixture", "rollout.agents=5", "rollout.rounds=1"],
    "chain 3x1": ["rollout.workflow=chain", "rollout.agents=3", "rollout.rounds=1"],
}
"""Name -> settings on top of the recipe tiny-agents and `COMMON`."""
VARIANTS = {
    "debate 2x2, first votes": [*WORKFLOWS["debate 2x2"], "agents.voters=first"],
    "debate 2x2, per agent": [*WORKFLOWS["debate 2x2"], "rollout.policies=per_agent"],
}
"""The same of ways to train: untrained, they are what they are variants of."""
IN_TURNS = {**WORKFLOWS, **VARIANTS}
ALONE = ("pass@1", "maj@4", "maj@6")
MODELS = ("reader", "tiny-base")
SAMPLES = 12
"""Answers to a question in a measurement: singly, and of each workflow."""
CURVES = ("agents/reward/turn=0", "agents/reward/turn=1", "agents/reward/turn=2")
CURVES = (*CURVES, "label/label_accuracy", "label/outcome_accuracy")


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="instead of two passes")
    parser.add_argument("--reader", type=Path, help="what bench/reader.py has made; else: made")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write the page's tables")
    arguments = parser.parse_args()
    common = [*COMMON, *([] if arguments.steps is None else [f"max_steps={arguments.steps}"])]
    made_with = {"common": common, "settings": IN_TURNS, "samples": SAMPLES}
    made_with["reader"] = reader.MADE_WITH
    kept, console = KeptRuns(arguments.out, made_with), Console()
    if not arguments.show:
        with tempfile.TemporaryDirectory() as place:
            paths = {name: name for name in arguments.models}
            if "reader" in paths:
                paths["reader"] = str(reader.reader_at(arguments.reader, place))
            wanted = {
                (model, name, seed): (name, seed, paths[model], common)
                for model in paths
                for seed in arguments.seeds
                for name in ("untrained", "TTRL", *IN_TURNS)
            }
            kept.complete(run, wanted, arguments.jobs, console)
    for model in kept.record["runs"]:
        name, shown = mark(model), [table(kept.record, model)]
        print(marked(name, shown))
        if arguments.write:
            write_into(PAGE, name, shown)


def run(name: str, seed: int, model: str, common: Sequence[str]) -> dict[str, Any]:
    """Train, unless it is "untrained", and return what the model scores, alone and in turns."""
    recipe = "tiny-agents" if name in IN_TURNS else "tiny-arithmetic"
    own = [*common, *IN_TURNS.get(name, []), f"seed={seed}", f"model.path={model}"]
    shown = [name] if name in IN_TURNS else list(WORKFLOWS)
    if name == "untrained":
        return {"scores": measured(model, seed, shown, common)}
    with quiet_run(recipe, [*own, "evaluation.samples=2"]) as made:
        summary, steps = made.summary, made.metrics
        scores = measured(str(made.path / "model"), seed, shown, common)
    curves = {c: [round(step[c], 4) for step in steps if c in step] for c in CURVES}
    return {
        "scores": scores,
        "curves": {name: curve for name, curve in curves.items() if curve},
        "tokens": sum(step["rollout/tokens"] for step in steps),
        "wall_s": summary["wall_s"],
    }


def measured(
    model: str, seed: int, workflows: Sequence[str], common: Sequence[str]
) -> dict[str, float]:
    """Return a model's scores on the training questions: pass@1, maj@k and the outcomes."""
    from ttrl.answers import Grader
    from ttrl.evaluation.measuring import open_pool
    from ttrl.settings.recipe import load_settings
    from ttrl.system.ranks import Ranks

    def settings(name: str | None) -> Settings:
        more = [] if name is None else IN_TURNS[name]
        own = [
            *common,
            *more,
            f"seed={seed}",
            f"model.path={model}",
            f"evaluation.samples={SAMPLES}",
        ]
        return load_settings("tiny-arithmetic" if name is None else "tiny-agents", overrides=own)

    alone, scores = settings(None), {}
    with Grader(alone.answers) as grader:
        with open_pool(alone, Ranks()) as pool:
            found = scored(alone, grader, pool)
            scores |= {name: found.mean(name).value for name in ALONE}
        for name in workflows:
            with open_pool(settings(name), Ranks()) as pool:
                scores[name] = scored(settings(name), grader, pool).mean("outcome").value
    return scores


def scored(settings: Settings, grader: Any, pool: RolloutPool) -> EvaluationResult:
    """Measure single answers, or with a workflow its conversations alone."""
    from dataclasses import replace

    from ttrl.evaluation.measuring import load_evaluation
    from ttrl.report.display import Display
    from ttrl.report.rollouts import RecordedGroup
    from ttrl.rollout.sampling import SamplingParams

    quiet = Display(Console(quiet=True))
    evaluation = load_evaluation(settings, grader, quiet)
    if evaluation.conversation is None:
        groups = evaluation.sample(pool, 0, quiet)
        return replace(evaluation, ks=(1, 4, 6)).score(groups, 0)
    own = settings.evaluation
    params = SamplingParams(
        n=own.samples,
        temperature=own.temperature,
        max_new_tokens=settings.rollout.max_new_tokens,
        stream=(settings.seed, "bench"),
    )
    asked = evaluation.asked.questions
    found = evaluation.conversation.converse(pool.sample, asked, params, lambda group: None)
    return evaluation.score(list(map(RecordedGroup.of, found)), 0)


def rows(record: dict[str, Any], model: str) -> list[list[str]]:
    """Make a row of each score: untrained, after TTRL alone, and trained in the workflow."""
    runs = record["runs"][model]
    found = []
    for score in (*ALONE, *IN_TURNS):
        untrained, alone = (values(runs.get(name, {}), score) for name in ("untrained", "TTRL"))
        trained = values(runs.get(score, {}), score)
        single = values(runs.get(score, {}), "pass@1")
        cells = [spread(x) for x in (untrained, alone, trained, single)]
        if any(cells):
            found.append([score, *cells])
    return found


HEAD = ("untrained", "trained by TTRL alone", "trained in the workflow", "its pass@1")


def values(runs: dict[str, Any], score: str) -> list[float]:
    """Return a score of each seed, in %."""
    return [100 * run["scores"][score] for run in runs.values() if score in run["scores"]]


def table(record: dict[str, Any], model: str) -> TextTable:
    """Make a table of means over seeds, with the lowest and the highest."""
    title = f"{model}, {counted({'runs': record['runs'][model]}, 'TTRL')}"
    return TextTable(title, ("accuracy in %", *HEAD), tuple(map(tuple, rows(record, model))))


def mark(model: str) -> str:
    """Return the name of a model's table in the page."""
    return f"bench/agents.py: {model}"


if __name__ == "__main__":
    main()
