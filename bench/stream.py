"""A stream of 300 additions in several orders: learning on, question by question, and frozen.

    .venv/bin/python bench/stream.py                all that is missing, and the tables
    .venv/bin/python bench/stream.py --show         run nothing
    .venv/bin/python bench/stream.py --questions 6 --seeds 0 --out tiny.json    a rehearsal

Every question is scored by votes that were sampled before it was learned from. Frozen weights are
those that a per-question run begins each question with, so its first answers are theirs. Every run
has one thread, and is kept in ``bench/results/stream.json`` at once; it is not made again.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from kept_runs import KeptRuns, command_line, named, spread
from machine import ROOT
from quiet_run import quiet_run
from rich.console import Console

from ttrl.evaluation.prequential import accuracy, last_third

RESULTS = ROOT / "bench" / "results" / "stream.json"
COMMON = [
    "threads=1",
    "data.held_out=none",
    "rollout.votes=32",
    "policy.trained_samples=16",
    "checkpoint.every=0",
    "report.every_s=0",
]
LORA = ["lora.rank=8", "optimizer.learning_rate=1e-3"]
RUNS: dict[str, list[str]] = {
    "continual": ["policy.sequences_per_update=128"],
    "continual, LoRA": [*LORA, "policy.sequences_per_update=128"],
    "per question": [
        *LORA,
        "rollout.questions_per_step=1",
        "policy.sequences_per_update=16",
        "stream.reset=per_question",
        "stream.visits=8",
        "stream.warmup_steps=0",
    ],
}
"""Settings on top of the recipe and `COMMON`. As many steps a question as eight of them share."""
CURVES = {
    "frozen": ("per question", "answers"),
    "continual": ("continual", "answers"),
    "continual, LoRA": ("continual, LoRA", "answers"),
    "per question, adapted": ("per question", "adapted"),
}
"""Row of the table -> run, and which of its answers."""


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    console, count = Console(), arguments.questions
    kept = KeptRuns(arguments.out, {"common": COMMON, "settings": RUNS, "questions": count})
    if not arguments.show:
        wanted = {(name, seed): (name, seed, count) for seed in arguments.seeds for name in RUNS}
        for key, found in kept.made(run, wanted, arguments.jobs, console):
            kept.add(key, found)
            kept.write(areas=areas(kept.record))
            console.print(f"{named(key)}: done", markup=False)
    for lines in page_tables(kept.record):
        console.print("\n".join(lines), markup=False, soft_wrap=True)


def stream(seed: int, count: int) -> list[dict[str, str]]:
    """Return additions of all levels, none of them the embedded task's, in a seed's order."""
    from ttrl.data import arithmetic

    rng, reserved = random.Random("stream"), arithmetic.reserved()
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        level = arithmetic.LEVELS[len(pairs) % len(arithmetic.LEVELS)]
        pair = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
        if pair not in reserved:
            pairs[pair] = None
    rows = [
        {"id": f"{a}+{b}", "prompt": arithmetic.question(a, b), "answer": str(a + b)}
        for a, b in pairs
    ]
    random.Random(f"order {seed}").shuffle(rows)
    return rows


def run(name: str, seed: int, count: int) -> dict[str, Any]:
    """Return one run's answers, right or wrong, in the order of the stream, and their cost."""
    rows = stream(seed, count)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "q.jsonl"
        lines = [json.dumps(row) for row in [*rows, {"end_of_stream": True}]]
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        own = [f"data.train={source}", "stream.queue=1024", f"seed={seed}"]
        with quiet_run("tiny-stream", [*COMMON, *RUNS[name], *own]) as made:
            summary, folder = made.summary, made.path
            found = {file: right(said(folder, file), rows) for file in ("answers", "adapted")}
            tokens = fmean(x["tokens"] for x in said(folder, "answers"))
    cost = {key: summary["stream"][key] for key in ("tokens_per_question", "seconds_per_question")}
    cost |= {"tokens_per_answer": tokens}
    return {**found, **cost, "steps": summary["steps"], "wall_s": summary["wall_s"]}


def said(folder: Path, file: str) -> list[dict[str, Any]]:
    """Read a stream's answers; a file that a run does not write is empty."""
    path = folder / "stream" / f"{file}.jsonl"
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def right(said: list[dict[str, Any]], rows: list[dict[str, str]]) -> dict[str, str]:
    """Return a digit per question, 1 for right: of the first sample, and of the majority."""
    return {
        kind: "".join(
            str(int(x[key] == r["answer"])) for x, r in zip(said, rows, strict=bool(said))
        )
        for kind, key in (("first", "first"), ("majority", "answer"))
    }


def areas(record: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Compute by row and seed the mean of each curve, of its last third, and what frozen lacks."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row, (name, file) in CURVES.items():
        for seed, result in record["runs"].get(name, {}).items():
            curve, means = result[file], {}
            for kind, digits in curve.items():
                means[kind] = accuracy(digits)
                means[f"{kind}, last third"] = accuracy(last_third(digits))
                frozen = record["runs"].get("per question", {}).get(seed)
                if frozen is not None:
                    means[f"{kind}, over frozen"] = means[kind] - accuracy(frozen["answers"][kind])
            found.setdefault(row, {})[seed] = means
    return found


def page_tables(record: dict[str, Any]) -> list[list[str]]:
    """Make the tables of docs/streams.md: means with their spread, and the curves in six parts."""
    found = areas(record)
    means = [["accuracy in %", *found], ["---"] * (1 + len(found))]
    for kind in ("first", "majority"):
        for part in ("", ", last third", ", over frozen"):
            name = f"{kind}{part}"
            cells = [spread([100 * m[name] for m in seeds.values()]) for seeds in found.values()]
            means.append([name.replace("first", "first sample"), *cells])
    runs = {row: list(record["runs"][CURVES[row][0]].values()) for row in found}
    tokens = [
        fmean(r["tokens_per_answer" if row == "frozen" else "tokens_per_question"] for r in results)
        for row, results in runs.items()
    ]
    means.append(["tokens a question", *(f"{n:.0f}" for n in tokens)])
    parts = [["questions", *found], ["---"] * (1 + len(found))]
    size = record["questions"] // 6
    for first in range(0, 6 * size, size):
        here = [
            fmean(accuracy(r[CURVES[row][1]]["first"][first : first + size]) for r in results)
            for row, results in runs.items()
        ]
        parts.append([f"{first + 1} to {first + size}", *(f"{100 * x:.1f}" for x in here)])
    return [[f"| {' | '.join(line)} |" for line in lines] for lines in (means, parts)]


if __name__ == "__main__":
    main()
