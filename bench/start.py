"""What a user waits for before anything moves: commands that answer at once, and the first step.

    .venv/bin/python bench/start.py                     five rounds
    .venv/bin/python bench/start.py --beside f0a9d66    in turns with an earlier commit

Seconds from the start of a process: to the end of `ttrl --help` and of `ttrl train --dry-run`; and
of `ttrl train tiny-arithmetic` to its first line, to the end of the measurement before training,
and to the end of the first step. A first round, which brings packages into the disk's cache, is not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT / "scripts"))
from same_bits import checked_out

RESULTS = ROOT / "bench" / "results" / "start.json"
COMMANDS = {
    "--help": ["--help"],
    "train --dry-run": ["train", "tiny-arithmetic", "--dry-run"],
}
TRAIN = ["train", "tiny-arithmetic", "--set=max_steps=1"]
STEPS = {0: "measured before", 1: "first step"}
"""Lines of `metrics.jsonl`, by the step that they are of."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", metavar="COMMIT", help="measure this commit, too")
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        trees = {"this": ROOT}
        if options.beside:
            trees[options.beside] = stack.enter_context(checked_out(options.beside))
        for counted in range(options.rounds + 1):
            for name, tree in trees.items():
                for what, seconds in waited(tree).items():
                    if counted:
                        found.setdefault(name, {}).setdefault(what, []).append(seconds)
    shown = Table("seconds to", *found)
    for what in found["this"]:
        cells = [by_moment[what] for by_moment in found.values()]
        shown.add_row(what, *(f"{median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in cells))
    Console().print(shown)
    RESULTS.write_text(json.dumps({"machine": describe(), "seconds": found}, indent=1) + "\n")


def waited(tree: Path) -> dict[str, float]:
    """Return the seconds to each moment, with the code of a tree."""
    found = {}
    for name, arguments in COMMANDS.items():
        with started(tree, arguments) as (process, begun):
            process.communicate()
            found[name] = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        with started(tree, [*TRAIN, f"--run-dir={run_dir}"]) as (process, begun):
            assert process.stdout is not None
            process.stdout.readline()
            found["first line"] = time.perf_counter() - begun
            found |= seen(run_dir / "metrics.jsonl", process, begun)
            process.communicate()
    return found


@contextmanager
def started(tree: Path, arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """Start a command of a tree; give its process, and when it was started."""
    path = os.pathsep.join([str(tree), str(tree / "kernels")])
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ttrl.cli", *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process, begun
    if process.returncode:
        raise SystemExit(f"ttrl {' '.join(arguments)} failed")


def seen(metrics: Path, process: subprocess.Popen[str], begun: float) -> dict[str, float]:
    """Return when the lines of `STEPS` were written, looking every hundredth of a second."""
    found: dict[str, float] = {}
    while process.poll() is None and len(found) < len(STEPS):
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        for line in lines:
            if line.endswith("\n") and (name := STEPS.get(json.loads(line)["step"])):
                found.setdefault(name, time.perf_counter() - begun)
        time.sleep(0.01)
    return found


if __name__ == "__main__":
    main()
