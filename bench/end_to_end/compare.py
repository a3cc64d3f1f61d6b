"""Ours beside TRL's GRPOTrainer on the same work: seconds per step, memory, accuracy.

    .venv/bin/python bench/end_to_end/compare.py                 five rounds, some 15 minutes
    .venv/bin/python bench/end_to_end/compare.py --check         … and against the recorded ratio

Needs `pip install trl==1.16.0`. Same model, questions, samples, updates and learning rate
(``work.py``); a fresh process each, in turns, another seed in every round; nothing else should run.
Each has the threads that its users get: ours one, as the recipe says, TRL one per core, which is
faster for it. Accuracy is that of the models which come out, on the
held-out questions. verl and OpenRLHF have no trainer that runs without a GPU. ``--check`` fails
where we are more than 10 % slower, as a ratio to TRL in the same run, than
``bench/results/end_to_end.json`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = ROOT / "bench" / "results" / "end_to_end.json"
TRAINERS = {"ttrl": "ours.py", "TRL": "trl_grpo.py"}
SLOWER = 1.1
"""Times the recorded ratio, beyond which --check fails."""


def main() -> None:
    """Measure, print, and write or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of each run; at most 8")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    console, runs = Console(), {name: [] for name in TRAINERS}
    for seed in range(options.rounds):
        for name, script in TRAINERS.items():
            runs[name].append(train(script, options.steps, seed))
            found = runs[name][-1]
            console.print(
                f"{name}, seed {seed}: {median(found['step_s']):.2f} s a step, "
                f"pass@1 {found['pass@1']:.1f} %"
            )
    summary = {name: summed(found) for name, found in runs.items()}
    ratios = [
        median(theirs["step_s"]) / median(ours["step_s"])
        for ours, theirs in zip(runs["ttrl"], runs["TRL"], strict=True)
    ]
    record = {
        "machine": describe() | {"trl": version("trl")},
        "steps": options.steps,
        "summary": summary,
        "times TRL": spread(ratios),
        "runs": runs,
    }
    console.print(table(record))
    if options.check:
        recorded = json.loads(RESULTS.read_text())["times TRL"]["median"]
        found = record["times TRL"]["median"]
        console.print(f"recorded: {recorded:.2f} times TRL's speed, now {found:.2f}")
        raise SystemExit(found * SLOWER < recorded)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def train(script: str, steps: int, seed: int) -> dict[str, Any]:
    """Run one trainer in a process of its own, and measure the model that comes out."""
    with tempfile.TemporaryDirectory() as folder:
        done = python(str(HERE / script), folder, str(steps), str(seed))
        found: dict[str, Any] = json.loads(done.splitlines()[-1])
        scores = Path(folder) / "scores.json"
        python(
            *("-m", "ttrl.cli", "eval", f"{folder}/model", "arithmetic:held_out"),
            *("--recipe", "tiny-arithmetic", "--set", "evaluation.samples=8"),
            *("--json", str(scores)),
        )
        found["pass@1"] = 100 * accuracy(json.loads(scores.read_text()))
    return found


def python(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run Python on these arguments, and return what it printed."""
    own = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", **(environment or {})}
    done = subprocess.run(
        [sys.executable, *arguments], env=own, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def accuracy(results: Any) -> float:
    """Return pass@1 of what `ttrl eval --json` wrote of one data set."""
    (result,) = results["results"]
    return float(result["means"]["pass@1"]["value"])


def spread(values: list[float]) -> dict[str, float]:
    """Summarize in three numbers."""
    return {"median": round(median(values), 3), "min": min(values), "max": max(values)}


def summed(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the rounds of a trainer; the first step of a run is not counted."""
    found: dict[str, Any] = {
        "step_s": spread([median(run["step_s"]) for run in runs]),
        "pass@1": spread([run["pass@1"] for run in runs]),
        "peak_mib": max(run["peak_mib"] for run in runs),
    }
    for phase in runs[0].get("phases", ()):
        found[f"{phase}_s"] = spread([median(run["phases"][phase][1:]) for run in runs])
    return found


def table(record: dict[str, Any]) -> Table:
    """Lay the trainers out beside each other."""
    shown = Table(title=f"one step of 16 questions x 32 answers, {record['steps']} steps a run")
    for column in ("trainer", "s a step", "rollout", "update", "pass@1 (%)", "peak MiB"):
        shown.add_column(column)
    for name, found in record["summary"].items():
        cells = [found.get(key) for key in ("step_s", "rollout_s", "update_s", "pass@1")]
        texts = [
            "" if c is None else f"{c['median']} ({c['min']:.2f}-{c['max']:.2f})" for c in cells
        ]
        shown.add_row(name, *texts, str(found["peak_mib"]))
    ratio = record["times TRL"]
    shown.caption = f"{ratio['median']} times TRL's speed ({ratio['min']:.2f}-{ratio['max']:.2f})"
    return shown


if __name__ == "__main__":
    main()
