"""Seconds per step alone and beside other work, by threads and how they wait for each other.

    .venv/bin/python bench/end_to_end/beside_load.py                    three rounds, 8 minutes
    .venv/bin/python bench/end_to_end/beside_load.py --beside f0a9d66   … with an earlier commit

The other work is a busy loop for each core. The default command has one thread, as its recipe says,
or two. Two spin for a short while and then sleep, as ttrl has it, or spin on, as libgomp does where
nobody asks it not to, or sleep at once. The earlier commit is as its own users got it. Runs of ours
with as many threads must end with the same weights, to the bit. Nothing else should run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT / "scripts"))
from same_bits import checked_out, run

RESULTS = ROOT / "bench" / "results" / "beside_load.json"
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "one thread": (1, {}),
    "two": (2, {}),
    "two that spin": (2, {"GOMP_SPINCOUNT": "300000"}),
    "two that sleep": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
}
"""Threads, and the environment that says how they wait; 300000 is libgomp's own number."""
PHASES = ("time/rollout_s", "time/update_s")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=4, help="of each run; the first is not counted"
    )
    parser.add_argument(
        "--beside", metavar="COMMIT", help="an earlier commit's default command, too"
    )
    options = parser.parse_args()
    console, cores = Console(), os.cpu_count() or 1
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with ExitStack() as stack:
        ways = {name: (ROOT, [f"threads={n}"], env) for name, (n, env) in WAYS.items()}
        if options.beside:
            tree = stack.enter_context(checked_out(options.beside))
            ways[options.beside] = (tree, [], {})
        for _ in range(options.rounds):
            for name, way in ways.items():
                for loops in (0, cores):
                    with busy(loops):
                        made = train(*way, options.steps)
                    load = "beside busy loops" if loops else "alone"
                    found.setdefault(name, {}).setdefault(load, []).append(made)
                    console.print(f"{name}, {load}: {made['step_s']:.2f} s a step")
    console.print(table(found))
    record = {"machine": describe(), "busy loops": cores, "runs": found}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(differing(found))


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep so many cores busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def train(
    tree: Path, overrides: list[str], environment: Mapping[str, str], steps: int
) -> dict[str, Any]:
    """Return a step's seconds, of the default command of a tree, and the digest of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*overrides, f"max_steps={steps}", "evaluation.samples=1", "data.held_out=none"]
        command = [sys.executable, "-m", "ttrl.cli", "train", "tiny-arithmetic"]
        command += [f"--set={override}" for override in overrides]
        run(
            tree,
            [
                "env",
                *(f"{k}={v}" for k, v in environment.items()),
                *command,
                f"--run-dir={folder}/run",
            ],
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        weights = (Path(folder) / "run" / "model" / "model.safetensors").read_bytes()
    counted = [line for line in map(json.loads, lines) if line["step"] > 1]
    return {
        "step_s": median(sum(line[phase] for phase in PHASES) for line in counted),
        "weights": hashlib.sha256(weights).hexdigest(),
    }


def differing(found: dict[str, dict[str, list[dict[str, Any]]]]) -> bool:
    """Say whether runs with as many threads have ended with other weights."""
    kinds: dict[int, set[str]] = {}
    for name, (threads, _) in WAYS.items():
        runs = [run for by_load in found[name].values() for run in by_load]
        kinds.setdefault(threads, set()).update(run["weights"] for run in runs)
    return any(len(weights) > 1 for weights in kinds.values())


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> Table:
    """Lay out medians and ranges."""
    shown = Table("threads", "alone", "beside busy loops", title="seconds per step")
    for name, by_load in found.items():
        seconds = [[run["step_s"] for run in runs] for runs in by_load.values()]
        shown.add_row(name, *(f"{median(s):.2f} ({min(s):.2f}-{max(s):.2f})" for s in seconds))
    return shown


if __name__ == "__main__":
    main()
