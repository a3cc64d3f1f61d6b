"""All reward estimators on the embedded task, over several seeds.

    .venv/bin/python bench/estimators.py                     # the table of docs/experiments.md
    .venv/bin/python bench/estimators.py --table             # print it from what has been run

Runs are separate processes on one thread each, as many at a time as there are cores. Every
finished run is kept in ``bench/results/estimators.json`` at once, and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "estimators.json"
COMMON = [
    "epochs=3",
    "threads=1",
    "data.held_out=none",
    "rollout.votes=32",
    "policy.trained_samples=16",
    "policy.sequences_per_update=256",
]
"""Half the votes and less than half the steps of the recipe: 75 runs have to be paid for."""
HIGH_RATE = "optimizer.learning_rate=1e-3"
VERIFIER = "bench/verifiers/casting_out_nines.py:check"

VARIANTS: dict[str, list[str]] = {
    "majority": [],
    "soft": ["reward.estimator=soft"],
    "scrl": ["reward.estimator=scrl"],
    "restrain": ["reward.estimator=restrain"],
    "ddrl": ["reward.estimator=ddrl", "reward.options.k=16"],
    "evol": ["reward.estimator=evol"],
    "confidence": ["reward.estimator=confidence"],
    "verified": ["reward.estimator=verified", f"reward.options.verifier={VERIFIER}"],
    "teacher (start)": ["reward.labels=teacher"],
    "teacher (EMA 0.9)": ["reward.labels=teacher", "reward.teacher_decay=0.9"],
    "ground truth": ["reward.labels=ground_truth", "reward.allow_ground_truth=true"],
    "random": ["reward.estimator=random"],
    "high rate: majority": [HIGH_RATE],
    "high rate: majority, guard": [HIGH_RATE, "guard.on_collapse=stop"],
    "high rate: teacher (start)": [HIGH_RATE, "reward.labels=teacher"],
}
"""Name -> settings on top of the recipe and `COMMON`."""

METRICS = {"majority ratio": "vote/majority_ratio", "label accuracy": "label/label_accuracy"}
"""Means over the last pass."""


def main() -> None:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS, metavar=("VARIANT", "SEED"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run(arguments.one[0], int(arguments.one[1]))))
        return
    console = Console()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    runs: dict[str, dict[str, Any]] = record["runs"]
    if not arguments.table:
        missing = [
            (name, seed)
            for seed in arguments.seeds
            for name in arguments.only
            if str(seed) not in runs.get(name, {})
        ]
        lock = threading.Lock()

        def one(task: tuple[str, int]) -> None:
            name, seed = task
            command = [sys.executable, __file__, "--one", name, str(seed)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode != 0:
                console.print(f"{name}, seed {seed} failed: {done.stderr.strip()[-500:]}")
                return
            with lock:
                runs.setdefault(name, {})[str(seed)] = json.loads(done.stdout.splitlines()[-1])
                record["common"] = COMMON
                record["variants"] = VARIANTS
                record["machine"] = describe()
                RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                console.print(f"{name}, seed {seed}: {_cells(runs[name][str(seed)])}")

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(one, missing))
    console.print(table(runs))


def run(name: str, seed: int) -> dict[str, Any]:
    """One run's figures."""
    from ttrl.report.display import Display
    from ttrl.run.run_folder import RunFolder
    from ttrl.settings.recipe import load_settings
    from ttrl.trainer import train

    overrides = [*COMMON, *VARIANTS[name], f"seed={seed}"]
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        summary = train(settings, RunFolder(path), Display(Console(quiet=True)))
        steps = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    last = steps[-max(1, len(steps) // settings.epochs) :]
    return {
        "before": {k: summary["before"][k] for k in ("pass@1", "pass@16")},
        "after": {k: summary["after"][k] for k in ("pass@1", "pass@16")},
        **{title: fmean(step[metric] for step in last) for title, metric in METRICS.items()},
        "steps": summary["steps"],
        "stopped": summary["stopped"],
        "wall_s": summary["wall_s"],
    }


def table(runs: dict[str, dict[str, Any]]) -> Table:
    """Means over seeds, with the lowest and the highest."""
    out = Table("estimator", "seeds", "pass@1", "pass@16", *METRICS, title="in %, after training")
    for name in VARIANTS:
        if results := list(runs.get(name, {}).values()):
            columns = [
                [r["after"]["pass@1"] for r in results],
                [r["after"]["pass@16"] for r in results],
                *([r[title] for r in results] for title in METRICS),
            ]
            cells = [
                f"{100 * fmean(c):.1f} ({100 * min(c):.1f}-{100 * max(c):.1f})" for c in columns
            ]
            out.add_row(name, str(len(results)), *cells)
    return out


def _cells(result: dict[str, Any]) -> str:
    before, after = (100 * result[when]["pass@1"] for when in ("before", "after"))
    return f"pass@1 {before:.1f} -> {after:.1f}, {result['steps']} steps, {result['wall_s']:.0f} s"


if __name__ == "__main__":
    main()
