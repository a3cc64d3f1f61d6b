"""How a step's seconds grow with votes, length of answers, vocabulary, model size and ranks.

    pip install altair                                    for the picture
    .venv/bin/python bench/end_to_end/growth.py           some 6 minutes
    .venv/bin/python bench/end_to_end/growth.py --draw    from what is recorded

From a base (`BASE`) one thing is changed at a time. Models are random, so every answer has as many
tokens as are allowed, hardly two begin alike, and rewards are random too (``reward.estimator =
"random"``): nearly every sample is trained on. Each point is `ttrl train` in processes of its own,
`STEPS` steps of which the first is not counted; medians go to ``bench/results/growth.json`` and, as
a picture, to ``docs/images/growth.svg``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import altair as alt
import torch
from compare import python
from machine import ROOT, describe
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from ttrl.models.pretrained import model_path
from ttrl.settings import ModelSettings

RESULTS = ROOT / "bench" / "results" / "growth.json"
PICTURE = ROOT / "docs" / "images" / "growth.svg"
BASE = {"votes": 32, "answer tokens": 64, "vocabulary": 1024, "layers x hidden size": (4, 128)}
AXES: dict[str, list[Any]] = {
    "votes": [8, 32, 128, 256],
    "answer tokens": [16, 64, 256],
    "vocabulary": [1024, 8192, 65536],
    "layers x hidden size": [(2, 64), (4, 128), (6, 256)],
    "ranks": [1, 2, 4],
}
"""What is changed -> its values; ranks share the machine's cores, under ZeRO-3."""
STEPS, QUESTIONS = 3, 4
PHASES = {"rollout": "time/rollout_s", "update": "time/update_s"}


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"points": {}}
    for axis in () if arguments.draw else arguments.only:
        record["points"][axis] = []
        for value in AXES[axis]:
            point = measure(BASE | {axis: value})
            record["points"][axis].append({"value": value, **point})
            Console().print(f"{axis} = {value}: {point}", highlight=False)
            record |= {"base": BASE, "machine": describe()}
            RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record["points"])


def measure(shape: dict[str, Any]) -> dict[str, float]:
    """Return a step's seconds by phase, and the model's parameters."""
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_model(Path(folder) / "model", shape)
        settings = {
            "model.path": f"{folder}/model",
            "model.dtype": "float32",
            "data.held_out": "none",
            "epochs": 1,
            "max_steps": STEPS,
            "rollout.questions_per_step": QUESTIONS,
            "rollout.votes": shape["votes"],
            "rollout.max_new_tokens": shape["answer tokens"],
            "policy.trained_samples": shape["votes"],
            "policy.sequences_per_update": QUESTIONS * shape["votes"],
            "reward.estimator": "random",
            "evaluation.samples": 1,
            "report.every_s": 0,
        }
        command = ["-m", "ttrl.cli", "train", "tiny-arithmetic", f"--run-dir={folder}/run"]
        command += [f"--set={name}={value}" for name, value in settings.items()]
        if ranks := shape.get("ranks"):
            command += [f"--ranks={ranks}", "--set=policy.backend=zero3"]
        python(*command)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    counted = [line for line in map(json.loads, lines) if line["step"] > 1]
    found = {name: median(line[key] for line in counted) for name, key in PHASES.items()}
    return {**found, "parameters": parameters}


def save_model(folder: Path, shape: dict[str, Any]) -> int:
    """Save a random model that reads with the embedded one's tokenizer; count its parameters."""
    shutil.copytree(
        model_path(ModelSettings(path="tiny-base")),
        folder,
        ignore=shutil.ignore_patterns("*.safetensors"),
    )
    layers, hidden = shape["layers x hidden size"]
    config = AutoConfig.from_pretrained(
        folder,
        vocab_size=shape["vocabulary"],
        num_hidden_layers=layers,
        layer_types=["full_attention"] * layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 32,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def draw(points: dict[str, list[dict[str, Any]]]) -> None:
    """Draw a panel for each thing that was changed, both axes logarithmic."""
    panels = []
    for axis, found in points.items():
        size = axis == "layers x hidden size"
        rows = [
            {"value": p["parameters"] if size else p["value"], "phase": phase, "seconds": p[phase]}
            for p in found
            for phase in PHASES
        ]
        values = sorted({row["value"] for row in rows})
        x = alt.X(
            "value:Q",
            title="parameters" if size else axis,
            scale=alt.Scale(type="log", domain=[values[0], values[-1]]),
            axis=alt.Axis(values=values, format=".2~s", labelOverlap=True, grid=False),
        )
        y = alt.Y("seconds:Q", title="seconds a step", scale=alt.Scale(type="log"))
        chart = alt.Chart(alt.InlineData(values=rows)).encode(
            x, y, alt.Color("phase:N", title=None)
        )
        panels.append(chart.mark_line(point=True).properties(width=170, height=150))
    PICTURE.parent.mkdir(exist_ok=True)
    alt.concat(*panels, columns=3).configure(background="white").save(PICTURE)


if __name__ == "__main__":
    main()
