"""When the votes would have ended runs that went on: healthy ones, and ones that collapse.

    .venv/bin/python bench/stopping.py            all that is missing, and the table
    .venv/bin/python bench/stopping.py --show     run nothing

Each run is made once, without the rule, and measured after every second step. Then the class that
a run uses reads its record. Every run has one thread, and is kept, step by step, in
``bench/results/stopping.json`` at once; it is not made again.
"""

from __future__ import annotations

import json
import tempfile
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from kept_runs import KeptRuns, command_line, named
from machine import ROOT
from quiet_run import quiet_run
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "stopping.json"
COMMON = [
    "threads=1",
    "data.held_out=none",
    "rollout.votes=32",
    "policy.trained_samples=16",
    "policy.sequences_per_update=256",
    "evaluation.samples=8",
    "evaluation.every=2",
    "checkpoint.every=0",
    "report.every_s=0",
]
LONG, SHORT, BRIEF = "epochs=7", "epochs=5", "epochs=4"
HARDEST = "data.train=LEVEL 4"
"""Questions most of whose first majorities are wrong; `run` writes them to a file."""
AGAINST = "reward.estimator=bench/controls/against.py:Against"
ONE = [
    "rollout.questions_per_step=1",
    "rollout.votes=512",
    "policy.trained_samples=256",
    "epochs=40",
]
RUNS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "the recipe": ([LONG], (0, 1)),
    "level 4 alone": ([HARDEST, "epochs=20"], (0,)),
    "one question": (ONE, (0, 1)),
    "4 x the rate": ([SHORT, "optimizer.learning_rate=6e-4"], (0, 1)),
    "7 x the rate": ([BRIEF, "optimizer.learning_rate=1e-3"], (0, 1)),
    "random rewards": ([BRIEF, "reward.estimator=random"], (0, 1)),
    "rewards against the majority": ([BRIEF, AGAINST], (0, 1)),
}
"""Row of the table -> settings on top of the recipe and `COMMON`, and seeds."""
COLLAPSED = 0.1
"""A run has collapsed where pass@1 is so far below where it began."""
HEAD = ("run", "seed", "steps", "pass@1 before", "best (step)", "last", "stops", "kept (step)")
HEAD = (*HEAD, "below the best", "why")
KEPT = ("vote/majority_ratio", "vote/flip_rate", "policy/entropy", "vote/distinct_answers")
KEPT = (*KEPT, "rollout/response_tokens_mean", "guard/collapse", "eval/train/pass@1")
"""Metrics that are kept step by step; the rule reads none but those of votes and the guard's."""


class Outcome(NamedTuple):
    """What the rule makes of a run."""

    stop: int
    """The step in which it ends the run; the last one if it does not."""
    kept: int
    """The step whose weights are kept."""
    why: str
    """A word for the reason; "" if it does not end the run."""


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    arguments = parser.parse_args()
    console, kept = Console(), KeptRuns(arguments.out, {"common": COMMON})
    if not arguments.show:
        for name in arguments.only:
            complete(kept, name, console)
    shown = Table(*HEAD, title="pass@1 in %")
    for row in rows(kept.record["runs"]):
        shown.add_row(*row)
    console.print(shown)


def complete(kept: KeptRuns, name: str, console: Console) -> None:
    """Make the runs of a row that are not there."""
    settings, seeds = RUNS[name]
    for seed in seeds:
        if kept.has((name, seed)):
            continue
        found = run([*COMMON, *settings, f"seed={seed}"], one=settings is ONE)
        kept.add((name, seed), found)
        kept.write()
        console.print(f"{named((name, seed))}: {replayed(found)}, {found['wall_s']:.0f} s")


def run(settings: list[str], one: bool) -> dict[str, Any]:
    """Return one run's steps, of which step 0 is what was measured before."""
    from ttrl.data.arithmetic import question_rows

    with tempfile.TemporaryDirectory() as place:
        questions = Path(place) / "hardest.jsonl"
        rows = [row for row in question_rows("train") if row["level"] == 4]
        questions.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        own = [f"data.train={questions}" if text == HARDEST else text for text in settings]
        recipe = "tiny-one-example" if one else "tiny-arithmetic"
        off = ["stopping.by_votes=false"] if one else []
        with quiet_run(recipe, [*own, *off]) as made:
            summary, record = made.summary, made.record
    steps = [
        {name: line[name] for name in ("step", *KEPT) if name in line}
        for line in (record.baseline, *record.steps)
    ]
    per_pass = 8 if one else loaded_pass(rows if HARDEST in settings else question_rows("train"))
    return {"pass": per_pass, "steps": steps, "wall_s": summary["wall_s"]}


def loaded_pass(rows: list[Any]) -> int:
    """Return the steps of a pass over questions, 16 a step."""
    return len(rows) // 16


def replayed(found: dict[str, Any]) -> Outcome:
    """Let the guard and the rule read a run's record; both compare what a run with the rule does.

    The guard is asked again, since a run without the rule compares shorter windows if its list is
    short.
    """
    from ttrl.data.sources import FEWEST_COMPARED
    from ttrl.evaluation.guard import CollapseGuard
    from ttrl.evaluation.stopping import StoppingRule
    from ttrl.settings import GuardSettings, StoppingSettings

    window = found["pass"] * ceil(FEWEST_COMPARED / found["pass"])
    rule = StoppingRule(StoppingSettings(by_votes=True), window)
    guard = CollapseGuard(GuardSettings(), window)
    for line in found["steps"][1:]:
        sign = guard.sign(line)
        ending = rule.after_step(line["step"], line | {"guard/collapse": float(sign is not None)})
        if ending is not None:
            why = next(
                word for word in ("collapse", "settled", "no better") if word in ending.reason
            )
            return Outcome(line["step"], rule.best if ending.goes_back else line["step"], why)
    last = found["steps"][-1]["step"]
    return Outcome(last, last, "")


def measured(found: dict[str, Any]) -> dict[int, float]:
    """Return pass@1 by step, wherever it was measured."""
    name = "eval/train/pass@1"
    return {line["step"]: line[name] for line in found["steps"] if name in line}


def at(scores: dict[int, float], step: int) -> float:
    """Return pass@1 after a step; between two measurements, their mean."""
    near = [s for s in (step - 1, step, step + 1) if s in scores]
    return scores[step] if step in scores else fmean(scores[s] for s in near)


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's row says, as numbers."""
    scores, outcome = measured(found), replayed(found)
    best = max(scores, key=lambda step: scores[step])
    last = max(scores)
    return {
        "before": scores[0],
        "best": best,
        "at_best": scores[best],
        "last": last,
        "at_last": scores[last],
        "at_kept": at(scores, outcome.kept),
        "collapsed": scores[last] < scores[0] - COLLAPSED,
        "outcome": outcome,
    }


def rows(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the table's cells."""
    cells = []
    for name, by_seed in runs.items():
        for seed, found in by_seed.items():
            f = figures(found)
            stop, kept, why = f["outcome"]
            cells.append(
                [
                    name,
                    seed,
                    str(f["last"]),
                    percent(f["before"]),
                    f"{percent(f['at_best'])} ({f['best']})",
                    percent(f["at_last"]),
                    str(stop) if why else "no",
                    f"{percent(f['at_kept'])} ({kept})",
                    percent(f["at_best"] - f["at_kept"]),
                    why,
                ]
            )
    return cells


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
