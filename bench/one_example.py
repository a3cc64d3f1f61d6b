"""One question many times against 128 questions a few times, on the embedded task.

    .venv/bin/python bench/one_example.py            all that is missing, and the table
    .venv/bin/python bench/one_example.py --show     run nothing

Each seed first trains on all questions; the others choose theirs by the votes that this run has
recorded, as `ttrl choose` does. All sample as many answers and make as many optimizer steps. Every
run has one thread, and is kept in ``bench/results/one_example.json`` at once; it is not made again.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from kept_runs import KeptRuns, command_line, named, spread
from machine import ROOT
from quiet_run import quiet_run
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "one_example.json"
COMMON = [
    "threads=1",
    "policy.sequences_per_update=256",
    "evaluation.samples=8",
    "checkpoint.every=0",
    "report.every_s=0",
]
ALL = ["epochs=3", "rollout.votes=32", "policy.trained_samples=16"]
"""24 steps of 16 questions: 512 answers and one optimizer step on 256 of them in each."""
ONE = ["rollout.questions_per_step=1", "rollout.votes=512", "policy.trained_samples=256"]
SIXTEEN = ["epochs=24", "rollout.votes=32", "policy.trained_samples=16"]
RUNS: dict[str, tuple[list[str], str, int]] = {
    "128 questions": (ALL, "", 0),
    "1, share nearest one half": ([*ONE, "epochs=24"], "half", 1),
    "1, share varies most": ([*ONE, "epochs=24"], "variance", 1),
    "1, the first of the list": ([*ONE, "epochs=24"], "first", 1),
    "16, shares nearest one half": (SIXTEEN, "half", 16),
}
"""Row of the table -> settings on top of the recipe and `COMMON`, and by what so many questions are
chosen. The first row trains on all, and its votes are what the others choose by."""
BASIS = next(iter(RUNS))
HEAD = ("trained on", "seeds", "others pass@1", "others maj@8", "held out pass@1", "held out maj@8")
HEAD = (*HEAD, "own share", "own labels right")


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="changes", action="append", default=[], help="a rehearsal's")
    arguments = parser.parse_args()
    console, common = Console(), [*COMMON, *arguments.changes]
    kept = KeptRuns(arguments.out, {"common": common, "settings": RUNS})
    if not arguments.show:
        for seed in arguments.seeds:
            complete(kept, seed, console)
    shown = Table(*HEAD, title="in %, before and after training")
    for row in rows(kept.record["runs"]):
        shown.add_row(*row)
    console.print(shown)


def complete(kept: KeptRuns, seed: int, console: Console) -> None:
    """Make a seed's runs that are not there, that on all questions first."""
    for name, (settings, by, count) in RUNS.items():
        if kept.has((name, seed)):
            continue
        shares = kept.record["runs"][BASIS][str(seed)]["shares"] if by else {}
        ids = choice(shares, by, count) if by else []
        found = run([*kept.record["common"], *settings, f"seed={seed}"], ids, votes=not by)
        kept.add((name, seed), found)
        kept.write()
        before, after = (100 * found[when]["others"]["pass@1"] for when in ("before", "after"))
        said = f"{ids[:2]}, others' pass@1 {before:.1f} -> {after:.1f}, {found['wall_s']:.0f} s"
        console.print(f"{named((name, seed))}: {said}", markup=False)


def choice(shares: dict[str, list[float]], by: str, count: int) -> list[str]:
    """Choose ids by the shares that a run has recorded; "first" looks at none."""
    from ttrl.report.choice import Visited, chosen

    questions = [Visited(id, tuple(found)) for id, found in shares.items()]
    if by == "first":
        return sorted(shares)[:count]
    assert by in ("half", "variance")
    return [question.id for question in chosen(questions, by, count)]


def run(settings: list[str], ids: list[str], votes: bool) -> dict[str, Any]:
    """Return one run's figures; with its votes question by question, if ``votes``."""
    from ttrl.report.choice import visited

    own = [f"data.ids={json.dumps(ids)}"] if ids else []
    with quiet_run("tiny-arithmetic", [*settings, *own]) as made:
        summary, record, rollout = made.summary, made.record, made.settings.rollout
        shares = {q.id: [round(s, 4) for s in q.shares] for q in visited(record)} if votes else {}
    ends = {}
    for when in ("before", "after"):
        others = summary["others"] if ids else summary
        ends[when] = {
            name: {score: scores[when][score] for score in ("pass@1", "maj@8")}
            for name, scores in {"others": others, "held out": summary["held_out"]}.items()
        }
    curves = {name: [step[name] for step in record.steps] for name in (SHARE, RIGHT, TOKENS)}
    return {
        **ends,
        "ids": ids,
        "shares": shares,
        "curves": {SHARE: curves[SHARE], RIGHT: curves[RIGHT]},
        "answers": summary["steps"] * rollout.questions_per_step * rollout.votes,
        "tokens": sum(curves[TOKENS]),
        "updates": sum(step["policy/updates"] for step in record.steps),
        "steps": summary["steps"],
        "wall_s": summary["wall_s"],
    }


SHARE, RIGHT, TOKENS = "vote/majority_ratio", "label/label_accuracy", "rollout/tokens"


def rows(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the table's cells, over the seeds that all its rows have; before training first."""
    seeds = sorted(set.intersection(*map(set, runs.values()))) if runs else []
    if not seeds:
        return []
    before = [runs[BASIS][seed]["before"] for seed in seeds]
    cells = [["before training", str(len(seeds)), *scores(before), "", ""]]
    for name, found in runs.items():
        own = [found[seed] for seed in seeds]
        last = [
            spread([100 * fmean(r["curves"][c][-8:]) for r in own], between="-")
            for c in (SHARE, RIGHT)
        ]
        cells.append([name, str(len(seeds)), *scores([r["after"] for r in own]), *last])
    return cells


def scores(ends: list[dict[str, Any]]) -> list[str]:
    """Return the cells of scores."""
    return [
        spread([100 * end[data][score] for end in ends], between="-")
        for data in ("others", "held out")
        for score in ("pass@1", "maj@8")
    ]


if __name__ == "__main__":
    main()
