"""Algorithms, losses, advantages and label sources on the embedded task, over several seeds.

    .venv/bin/python bench/algorithms.py                     all that is missing, and every table
    .venv/bin/python bench/algorithms.py --only algorithms   one table
    .venv/bin/python bench/algorithms.py --show              run nothing

All runs of a table have the same budget of samples and of updates. They have one thread each, and
as many go at a time as there are cores. Every finished run is kept in
``bench/results/algorithms.json`` at once, and not run again.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from kept_runs import KeptRuns, command_line, named, spread
from machine import ROOT
from quiet_run import quiet_run
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "algorithms.json"
COMMON = [
    "epochs=3",
    "threads=1",
    "data.held_out=none",
    "rollout.votes=32",
    "policy.trained_samples=16",
    "policy.sequences_per_update=256",
]
"""Half the votes and less than half the steps of the recipe: many runs have to be paid for."""
SEVERAL_UPDATES = ["policy.sequences_per_update=64", "loss.old_logprobs=policy"]
"""Where the ratio matters: four optimizer steps on each rollout."""
HIGH_RATE = "optimizer.learning_rate=1e-3"
VERIFIER = "bench/verifiers/casting_out_nines.py:check"
HARMONY = [
    "reward.labels=harmony",
    "harmony.paraphrase=bench/paraphrases/turned_around.py:turn",
    "rollout.votes=16",
]
"""As many samples as the others: half of them answer the paraphrase. Self-reflection is not here:
the embedded model can read nothing but a sum."""
PPO = ["algorithm=ppo", "critic.learning_rate=1e-3"]
PRIME = ["algorithm=prime", "prime.learning_rate=1e-3"]
"""A run has too few steps for their second model to learn anything at the rates of long runs."""

HARD = "data.train=LEVELS 3 AND 4"
"""Questions on which the first majority is wrong in nearly half of the cases: in hardly any of
level 3, and in four of five of level 4. `run` writes them to a file."""
ON_HARD = [HARD, "epochs=6"]
"""As many steps, on half as many questions."""

NO_PAGE = "report.every_s=0"

Variants = dict[str, list[str]]
TABLES: dict[str, Variants] = {
    "algorithms": {"GRPO": [], "PPO": PPO, "PRIME": PRIME},
    "advantages": {
        kind: [] if kind == "mean_std" else [f"reward.advantages={kind}"]
        for kind in (
            "mean_std",
            "mean",
            "rloo",
            "opo",
            "pass_at_k",
            "max_rl",
            "remax",
            "reinforce_pp",
            "reinforce_pp_baseline",
        )
    },
    "losses": {
        "PPO's clip": SEVERAL_UPDATES,
        "CISPO": [*SEVERAL_UPDATES, "loss.policy=cispo"],
        "SAPO": [*SEVERAL_UPDATES, "loss.policy=sapo"],
        "no clip": [*SEVERAL_UPDATES, "loss.policy=none"],
        "GSPO": [
            *SEVERAL_UPDATES,
            "loss.ratio_level=sequence",
            "loss.clip_low=3e-4",
            "loss.clip_high=4e-4",
        ],
        "GMPO": [*SEVERAL_UPDATES, "loss.policy=gmpo", "loss.clip_low=0.4", "loss.clip_high=0.4"],
        "DPPO-TV": [*SEVERAL_UPDATES, "loss.policy=dppo_tv"],
        "DPPO-KL": [*SEVERAL_UPDATES, "loss.policy=dppo_kl"],
        "entropy mask": [*SEVERAL_UPDATES, "loss.entropy_mask=0.2"],
        "Clip-Cov": [*SEVERAL_UPDATES, "loss.covariance=clip"],
        "KL-Cov": [*SEVERAL_UPDATES, "loss.policy=none", "loss.covariance=kl"],
        "entropy target": [*SEVERAL_UPDATES, "loss.entropy_target=0.05"],
        "KL 0.01": [*SEVERAL_UPDATES, "loss.kl_coef=0.01"],
        "KL 0.01, k3+, ratio": [
            *SEVERAL_UPDATES,
            "loss.kl_coef=0.01",
            "loss.kl_estimator=k3+",
            "loss.kl_bias_correction=true",
        ],
    },
    "estimators": {
        "majority": [],
        "soft": ["reward.estimator=soft"],
        "scrl": ["reward.estimator=scrl"],
        "restrain": ["reward.estimator=restrain"],
        "ddrl": ["reward.estimator=ddrl", "reward.options.k=16"],
        "evol": ["reward.estimator=evol"],
        "ttrl_guard": ["reward.estimator=ttrl_guard"],
        "confidence": ["reward.estimator=confidence"],
        "verified": ["reward.estimator=verified", f"reward.options.verifier={VERIFIER}"],
        "scope": ["reward.estimator=scope"],
        "self-harmony": HARMONY,
        "teacher (start)": ["reward.labels=teacher"],
        "teacher (EMA 0.9)": ["reward.labels=teacher", "reward.teacher_decay=0.9"],
        "ground truth": ["reward.labels=ground_truth", "reward.allow_ground_truth=true"],
        "random": ["reward.estimator=random"],
        "high rate: majority": [HIGH_RATE],
        "high rate: majority, guard": [HIGH_RATE, "guard.on_collapse=stop"],
        "high rate: teacher (start)": [HIGH_RATE, "reward.labels=teacher"],
    },
    "hard": {
        "majority": ON_HARD,
        "PPO": [*ON_HARD, *PPO],
        "PRIME": [*ON_HARD, *PRIME],
        "soft": [*ON_HARD, "reward.estimator=soft"],
        "scrl": [*ON_HARD, "reward.estimator=scrl"],
        "restrain": [*ON_HARD, "reward.estimator=restrain"],
        "ttrl_guard": [*ON_HARD, "reward.estimator=ttrl_guard"],
        "verified": [*ON_HARD, "reward.estimator=verified", f"reward.options.verifier={VERIFIER}"],
        "scope": [*ON_HARD, "reward.estimator=scope"],
        "self-harmony": [*ON_HARD, *HARMONY],
        "teacher (EMA 0.9)": [*ON_HARD, "reward.labels=teacher", "reward.teacher_decay=0.9"],
        "ground truth": [
            *ON_HARD,
            "reward.labels=ground_truth",
            "reward.allow_ground_truth=true",
        ],
    },
}
"""Table -> variant -> settings on top of the recipe and `COMMON`."""

CURVES = (
    "label/ground_truth_reward",
    "policy/entropy",
    "vote/majority_ratio",
    "label/label_accuracy",
)
"""Kept step by step; the first is pass@1 of the votes."""
COLUMNS = {
    "majority ratio": ("vote/majority_ratio", 100, 1),
    "label accuracy": ("label/label_accuracy", 100, 1),
    "entropy (nats)": ("policy/entropy", 1, 3),
}
"""Means over the last third of the steps, what they are multiplied by, and their digits."""
HEAD = ("seeds", "pass@1", "pass@16", *COLUMNS)


def main() -> None:
    """Run what is missing, print, write."""
    parser = command_line(__doc__, RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    console, kept = Console(), KeptRuns(arguments.out, {"common": COMMON})
    if not arguments.show:
        complete(kept, arguments.only, arguments.seeds, arguments.jobs, console)
    for name in arguments.only:
        console.print(table(name, kept.record["runs"]))


def complete(
    kept: KeptRuns, tables: list[str], seeds: list[int], jobs: int, console: Console
) -> None:
    """Make the tables' runs that are not there; those with the same settings are one run."""
    variants = {key_of(s): s for name in tables for s in TABLES[name].values()}
    wanted = {(key, seed): (variants[key], seed) for seed in seeds for key in variants}
    for key, found in kept.made(run, wanted, jobs, console):
        kept.add(key, found)
        kept.write(tables=TABLES)
        before, after = (100 * found[when]["pass@1"] for when in ("before", "after"))
        said = f"pass@1 {before:.1f} -> {after:.1f}, {found['wall_s']:.0f} s"
        console.print(f"{named(key)}: {said}", markup=False)


def key_of(settings: list[str]) -> str:
    """Name a run by what it changes."""
    return " ".join(settings) or "the recipe"


def run(changes: list[str], seed: int) -> dict[str, Any]:
    """Return one run's figures."""
    from ttrl.data.arithmetic import question_rows

    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "hard.jsonl"
        rows = [row for row in question_rows("train") if row["level"] in (3, 4)]
        questions.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        changes = [f"data.train={questions}" if change == HARD else change for change in changes]
        changes = [*COMMON, *changes, f"seed={seed}", NO_PAGE]
        with quiet_run("tiny-arithmetic", changes) as made:
            summary, steps = made.summary, [made.record.baseline, *made.metrics]
    return {
        "before": {k: summary["before"][k] for k in ("pass@1", "pass@16")},
        "after": {k: summary["after"][k] for k in ("pass@1", "pass@16")},
        "curves": {
            name: [round(step[name], 4) for step in steps if name in step] for name in CURVES
        },
        "steps": summary["steps"],
        "stopped": summary["stopped"],
        "wall_s": summary["wall_s"],
    }


def table(name: str, runs: dict[str, dict[str, Any]]) -> Table:
    """Make a table of means over seeds, with the lowest and the highest."""
    out = Table(name, *HEAD, title="in %, after training")
    for row in rows(name, runs):
        out.add_row(*row)
    return out


def rows(name: str, runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return a table's cells, over the seeds that all its variants have; first the variant."""
    made = {v: runs[key_of(s)] for v, s in TABLES[name].items() if key_of(s) in runs}
    seeds = sorted(set.intersection(*map(set, made.values()))) if made else []
    return [
        [variant, str(len(seeds)), *figures([found[seed] for seed in seeds])]
        for variant, found in made.items()
    ]


def figures(results: list[dict[str, Any]]) -> list[str]:
    """Return the cells of some runs, behind their number."""
    cells = [
        spread([100 * r["after"][k] for r in results], between="-") for k in ("pass@1", "pass@16")
    ]
    for metric, factor, digits in COLUMNS.values():
        curves = [r["curves"][metric] for r in results]
        # A run whose advantages are all 0 updates nothing, and has no figures of updates.
        known = all(curves)
        cells.append(
            spread([factor * last_pass(c) for c in curves], between="-", digits=digits)
            if known
            else "none"
        )
    return cells


def last_pass(curve: list[float]) -> float:
    """Average the last third of a run."""
    return fmean(curve[-(len(curve) // 3 or 1) :])


if __name__ == "__main__":
    main()
