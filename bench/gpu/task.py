"""The embedded task, trained as a user would: seconds per step, scores before and after.

With ``--against-cpu`` the answers that were sampled are trained on once more, on the CPU: loss,
gradient and the log-probs that the sampler saw must be the same, up to float32's rounding.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from record import Record, part_parser

from ttrl.data.arithmetic import question_rows

SAME = {"policy/loss": 1e-4, "policy/grad_norm": 1e-3, "policy/entropy": 1e-3}
"""How far GPU and CPU may be apart, in parts of 1, or by that much near 0."""
GAP = 1e-3
"""Largest difference of a sampled token's log-prob between the GPU's sampler and the CPU."""
SMALL = (
    "rollout.questions_per_step=4",
    "rollout.votes=8",
    "policy.trained_samples=8",
    "policy.sequences_per_update=32",
    "evaluation.samples=2",
)
"""A few seconds a step; the whole task has 16 questions with 64 answers."""


def main() -> None:
    """Train, and write down what the run folder says."""
    parser = part_parser(__doc__)
    parser.add_argument("--backend", choices=("local", "zero3"), default="local")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="four questions, eight answers each")
    parser.add_argument(
        "--against-cpu", action="store_true", help="compare the update with a CPU's"
    )
    options = parser.parse_args()
    record = Record(options.output)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = 1 if options.dry_run else options.steps
        overrides = [
            f"policy.backend={options.backend}",
            f"model.dtype={options.dtype}",
            f"max_steps={steps}",
        ]
        if options.small or options.dry_run:
            overrides += [*SMALL, *few_questions(folder)]
        if options.dry_run:
            overrides.append("threads=1")
        record["settings"] = [o for o in overrides if not o.startswith("data.")]
        train(folder / "run", overrides)
        lines = metrics(folder / "run")
        record["steps"] = lines
        rest = lines[1:] or lines
        record["median_seconds"] = {
            key: median(line[key] for line in rest) for key in rest[0] if key.startswith("time/")
        }
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        held_out = summary["held_out"]
        for where, found in {"train": summary, "held_out": held_out}.items():
            record[f"scores_{where}"] = {k: overall(found[k]) for k in ("before", "after")}
        if options.against_cpu:
            train(folder / "cpu", overrides, replay=folder / "run" / "rollouts")
            record["cpu"] = metrics(folder / "cpu")
            refuse_difference(lines[0], record["cpu"][0])


def train(folder: Path, overrides: list[str], replay: Path | None = None) -> None:
    """Start ``ttrl train``; a replay runs on the CPU."""
    command = [sys.executable, "-m", "ttrl.cli", "train", "tiny-arithmetic"]
    command += ["--run-dir", str(folder)]
    command += [part for override in overrides for part in ("--set", override)]
    environment = dict(os.environ)
    if replay is not None:
        command += ["--replay", str(replay)]
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif "policy.backend=zero3" in overrides:
        command += ["--ranks", "1"]
    subprocess.run(command, env=environment, check=True)


def few_questions(folder: Path) -> list[str]:
    """Settings of a training set and a held-out set of four questions each, of all levels."""
    settings = []
    for key, split in {"train": "train", "held_out": "held_out"}.items():
        path = folder / f"{split}.jsonl"
        rows = islice(question_rows(split), 0, None, 32)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings.append(f"data.{key}={path}")
    return settings


def metrics(folder: Path) -> list[dict[str, float]]:
    """Those of each step, without the ones of single levels."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    return [overall(found) for found in steps if found["step"] > 0]  # 0 was before training


def overall(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is not of a single level only."""
    return {key: value for key, value in found.items() if "level=" not in key}


def refuse_difference(gpu: Mapping[str, float], cpu: Mapping[str, float]) -> None:
    """Raise unless both have made the same update of the same answers."""
    wrong = [
        f"{key} is {gpu[key]:.7g} on the GPU, {cpu[key]:.7g} on the CPU"
        for key, limit in SAME.items()
        if not math.isclose(gpu[key], cpu[key], rel_tol=limit, abs_tol=limit * 0.1)
    ]
    gap = cpu["policy/sampler_max_gap"]
    if not gap < GAP:
        wrong.append(f"a token's log-prob differs by {gap:.3g}, expected < {GAP}")
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
