"""The embedded task over several seeds: does the default setting hold, and does the other fall?

    .venv/bin/python bench/tiny_seeds.py                     seeds 0-4 of the default
    .venv/bin/python bench/tiny_seeds.py --beside f0a9d66    in turns with an earlier commit
    .venv/bin/python bench/tiny_seeds.py --name collapse --set optimizer.learning_rate=1e-3

Runs `ttrl train tiny-arithmetic` one after the other, prints a table, and writes
``bench/results/tiny_seeds_NAME.json``. Seconds are those of the whole command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from typing import Any

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT / "scripts"))
from same_bits import checked_out, run

COLUMNS = {
    "pass@1": lambda s: (s["before"]["pass@1"], s["after"]["pass@1"]),
    "maj@16": lambda s: (s["before"]["maj@16"], s["after"]["maj@16"]),
    "held out pass@1": lambda s: (
        s["held_out"]["before"]["pass@1"],
        s["held_out"]["after"]["pass@1"],
    ),
    "held out maj@16": lambda s: (
        s["held_out"]["before"]["maj@16"],
        s["held_out"]["after"]["maj@16"],
    ),
}

CURVES = ("vote/majority_ratio", "label/label_accuracy", "vote/distinct_answers", "vote/flip_rate")
"""Kept step by step; the flip rate begins with the second epoch."""
PHASES = ("time/rollout_s", "time/update_s")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="default", help="names the result file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--beside", metavar="COMMIT", help="make each run with this commit, too")
    arguments = parser.parse_args()

    console = Console()
    results: dict[str, dict[int, dict[str, Any]]] = {}
    with ExitStack() as stack:
        trees = {"this": ROOT}
        if arguments.beside:
            trees[arguments.beside] = stack.enter_context(checked_out(arguments.beside))
        for seed in arguments.seeds:
            for name, tree in trees.items():
                found = train(tree, [*arguments.overrides, f"seed={seed}"])
                results.setdefault(name, {})[seed] = found
                console.print(f"{name}, seed {seed}: {' '.join(cells(found))} s")
    for name, runs in results.items():
        console.print(table(f"{arguments.name}, {name}", runs))
    record = {"machine": describe(), "overrides": arguments.overrides, "seeds": results["this"]}
    if arguments.beside:
        record["beside"] = compared(arguments.beside, results["this"], results[arguments.beside])
        console.print(record["beside"]["times as fast"])
    output = ROOT / "bench" / "results" / f"tiny_seeds_{arguments.name}.json"
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {output.relative_to(ROOT)}")


def train(tree: Path, overrides: list[str]) -> dict[str, Any]:
    """Return what the default command of a tree leaves: summary, curves, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        command = [sys.executable, "-m", "ttrl.cli", "train", "tiny-arithmetic"]
        command += [f"--set={override}" for override in overrides]
        began = time.perf_counter()
        run(tree, [*command, f"--run-dir={path}"])
        seconds = time.perf_counter() - began
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
        steps = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary["command_s"] = seconds
    # Sampling and updates alone, without start, measuring before and after, and the page.
    summary["training_s"] = sum(step.get(phase, 0.0) for step in steps for phase in PHASES)
    summary["curve"] = {
        name: [round(step[name], 4) for step in steps if name in step] for name in CURVES
    }
    return summary


def cells(summary: dict[str, Any]) -> list[str]:
    """Write a run's scores before and after, and its seconds."""
    pairs = [f"{100 * a:.1f} → {100 * b:.1f}" for a, b in (c(summary) for c in COLUMNS.values())]
    return [*pairs, f"{summary['command_s']:.0f}"]


def table(title: str, runs: dict[int, dict[str, Any]]) -> Table:
    """Lay the seeds of a commit out below each other."""
    shown = Table("seed", *COLUMNS, "seconds", title=f"{title}, in %, before → after")
    for seed, summary in runs.items():
        shown.add_row(str(seed), *cells(summary))
    return shown


def compared(
    commit: str, ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Summarize another commit's runs beside those of the same seeds here."""
    ratios = {
        phase: [theirs[seed][phase] / ours[seed][phase] for seed in ours]
        for phase in ("training_s", "command_s")
    }
    return {
        "commit": commit,
        "times as fast": {
            phase: {"median": median(r), "min": min(r), "max": max(r)}
            for phase, r in ratios.items()
        },
        "held out pass@1": {
            name: fmean(s["held_out"]["after"]["pass@1"] for s in runs.values())
            for name, runs in (("this", ours), (commit, theirs))
        },
        "seeds": theirs,
    }


if __name__ == "__main__":
    main()
