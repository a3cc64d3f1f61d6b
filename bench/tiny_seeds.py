"""The embedded task over several seeds: does the default setting hold, and does the other fall?

    .venv/bin/python bench/tiny_seeds.py                     seeds 0-4 of the default
    .venv/bin/python bench/tiny_seeds.py --name collapse --set optimizer.learning_rate=1e-3

Runs one after the other, prints a table, and writes ``bench/results/tiny_seeds_NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train

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


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="default", help="names the result file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()

    console = Console()
    table = Table("seed", *COLUMNS, "seconds", title=f"{arguments.name}, in %, before → after")
    results: dict[int, dict[str, Any]] = {}
    for seed in arguments.seeds:
        settings = load_settings(
            "tiny-arithmetic", overrides=[*arguments.overrides, f"seed={seed}", "report.every_s=0"]
        )
        with tempfile.TemporaryDirectory() as folder:
            summary = train(settings, RunFolder(Path(folder) / "run"), Display(Console(quiet=True)))
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        curve = [json.loads(line) for line in lines]
        summary["curve"] = {
            name: [round(step[name], 4) for step in curve if name in step] for name in CURVES
        }
        results[seed] = summary
        pairs = [
            f"{100 * a:.1f} → {100 * b:.1f}" for a, b in (c(summary) for c in COLUMNS.values())
        ]
        table.add_row(str(seed), *pairs, f"{summary['wall_s']:.0f}")
        console.print(f"seed {seed}: pass@1 {pairs[0]}, {summary['wall_s']:.0f} s")
    console.print(table)
    output = ROOT / "bench" / "results" / f"tiny_seeds_{arguments.name}.json"
    output.parent.mkdir(exist_ok=True)
    record = {"machine": describe(), "overrides": arguments.overrides, "seeds": results}
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {output.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
