"""Seconds per step alone and beside other work, with threads that sleep and that spin.

    .venv/bin/python bench/end_to_end/beside_load.py      three rounds, some 10 minutes

The other work is a busy loop for each core. Threads that wait for each other sleep
(``OMP_WAIT_POLICY=PASSIVE``, which ttrl sets), or spin as libgomp does where nobody asks it not to.
All runs must end with the same weights, to the bit. Nothing else should run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compare import HERE, python, spread
from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "beside_load.json"
WAITING = {"sleep": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}
"""Environments by how threads wait; 300000 is libgomp's own number."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of each run; at most 8")
    options = parser.parse_args()
    console, cores = Console(), os.cpu_count() or 1
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for waiting, environment in WAITING.items():
            for loops in (0, cores):
                with busy(loops):
                    found = train(options.steps, environment)
                name = f"{waiting}, {'beside busy loops' if loops else 'alone'}"
                runs.setdefault(name, []).append(found)
                console.print(f"{name}: {median(found['step_s']):.2f} s a step")
    weights = {run["weights"] for found in runs.values() for run in found}
    step_s = {
        name: spread([median(run["step_s"]) for run in found]) for name, found in runs.items()
    }
    shown = Table(title=f"seconds per step; busy loops: {cores}; weights: {len(weights)} kind")
    for name in step_s:
        shown.add_column(name)
    shown.add_row(*(f"{s['median']} ({s['min']}-{s['max']})" for s in step_s.values()))
    console.print(shown)
    record = {"machine": describe(), "busy loops": cores, "step_s": step_s, "runs": runs}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(len(weights) > 1)


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


def train(steps: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run our trainer in a process of its own, and take the digest of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        done = python(str(HERE / "ours.py"), folder, str(steps), "0", environment=environment)
        weights = (Path(folder) / "model" / "model.safetensors").read_bytes()
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return {"step_s": found["step_s"], "weights": hashlib.sha256(weights).hexdigest()}


if __name__ == "__main__":
    main()
