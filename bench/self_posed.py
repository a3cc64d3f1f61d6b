"""The embedded task without a question: the model poses its additions itself, over several seeds.

    .venv/bin/python bench/self_posed.py                all that is missing, and the tables
    .venv/bin/python bench/self_posed.py --show         run nothing
    .venv/bin/python bench/self_posed.py --steps 2 --seeds 0 --out tiny.json    a rehearsal

Every run begins without questions, and is measured on the embedded task's held-out ones, none of
which it may ask. It has one thread, and is kept in ``bench/results/self_posed.json`` at once; it is
not made again.
"""

from __future__ import annotations

import os
from statistics import fmean
from typing import Any

from kept_runs import KeptRuns, command_line, named, spread
from machine import ROOT
from quiet_run import quiet_run
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "self_posed.json"
COMMON = [
    "threads=1",
    "rollout.votes=32",
    "policy.trained_samples=16",
    "policy.sequences_per_update=256",
    "evaluation.samples=8",
    "checkpoint.every=0",
    "report.every_s=0",
]
RUNS: dict[str, list[str]] = {
    "votes": ["policy.sequences_per_update=320", "posed.weight=1"],
    "light proposer": ["policy.sequences_per_update=320", "posed.weight=0.1"],
    "solver only": ["posed.weight=0"],
    "checker": ["policy.sequences_per_update=320", "posed.weight=1", "reward.labels=checker"],
    "light proposer, checker": [
        "policy.sequences_per_update=320",
        "posed.weight=0.1",
        "reward.labels=checker",
    ],
}
"""Settings on top of the recipe and `COMMON`. A step has up to 256 answers, and 64 proposals."""
CURVES = (
    "posed/valid_share",
    "posed/distinct_share",
    "posed/kept_share",
    "posed/mean_share",
    "posed/reward",
    "posed/trained",
    "label/label_accuracy",
)
LEVELS = (1, 2, 3, 4)
ROWS = {
    "valid, first steps": ("posed/valid_share", True),
    "valid, last steps": ("posed/valid_share", False),
    "valid and distinct, first steps": ("posed/distinct_share", True),
    "valid and distinct, last steps": ("posed/distinct_share", False),
    "within the band, first steps": ("posed/kept_share", True),
    "within the band, last steps": ("posed/kept_share", False),
    "right labels, first steps": ("label/label_accuracy", True),
    "right labels, last steps": ("label/label_accuracy", False),
}
"""Row of the second table -> its curve, and whether of the first tenth of the run or the last."""


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    console, steps = Console(), arguments.steps
    kept = KeptRuns(arguments.out, {"common": COMMON, "settings": RUNS, "steps": steps})
    if not arguments.show:
        wanted = {(name, seed): (name, seed, steps) for seed in arguments.seeds for name in RUNS}
        for key, found in kept.made(run, wanted, arguments.jobs, console):
            kept.add(key, found)
            runs = kept.record["runs"]  # whichever comes first, columns are in our order
            kept.write(runs={name: runs[name] for name in RUNS if name in runs})
            console.print(f"{named(key)}: done", markup=False)
    record = kept.record
    for head, body in (("held-out pass@1 in %", gains(record)), ("share in %", shares(record))):
        table = Table(head, *record["runs"])
        for row in body:
            table.add_row(*row)
        console.print(table)


def run(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Return a run's held-out scores before and after, and its curves."""
    own = [f"seed={seed}", f"max_steps={steps}"]
    with quiet_run("tiny-self-posed", [*COMMON, *RUNS[name], *own]) as made:
        summary, lines = made.summary, made.metrics
    curves = {
        name: [None if name not in line else round(line[name], 4) for line in lines]
        for name in CURVES
    }
    scores = {
        when: {k: v for k, v in summary["held_out"][when].items() if k.startswith("pass@1")}
        for when in ("before", "after")
    }
    return {**scores, "curves": curves, "wall_s": summary["wall_s"]}


def gains(record: dict[str, Any]) -> list[list[str]]:
    """Make the rows of pass@1 after training, and of what it has gained, overall and by level."""
    rows = []
    names = {"all": "pass@1", **{f"level {n}": f"pass@1/level={n}" for n in LEVELS}}
    for when in ("before", "after"):
        for shown, name in names.items():
            cells = [
                spread([100 * run[when][name] for run in runs.values()])
                for runs in record["runs"].values()
            ]
            rows.append([f"{shown}, {when}", *cells])
    rows.append(["gain", *(spread(gained(runs)) for runs in record["runs"].values())])
    return [*rows, ["seeds", *(str(len(runs)) for runs in record["runs"].values())]]


def gained(runs: dict[str, Any]) -> list[float]:
    """Return by how many points each seed has risen."""
    return [100 * (run["after"]["pass@1"] - run["before"]["pass@1"]) for run in runs.values()]


def shares(record: dict[str, Any]) -> list[list[str]]:
    """Make the rows of shares at a run's beginning and end."""
    return [
        [row, *(spread(part(runs, curve, first=first)) for runs in record["runs"].values())]
        for row, (curve, first) in ROWS.items()
    ]


def part(runs: dict[str, Any], curve: str, *, first: bool) -> list[float]:
    """Return each seed's mean over the first or the last tenth of its steps, in %."""
    found = []
    for result in runs.values():
        points = result["curves"][curve]
        tenth = max(1, len(points) // 10)
        known = [p for p in (points[:tenth] if first else points[-tenth:]) if p is not None]
        found += [100 * fmean(known)] if known else []
    return found


if __name__ == "__main__":
    main()
