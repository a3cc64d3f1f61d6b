"""How far rounding, and faulty pushes, take an engine from the policy.

    .venv/bin/python bench/agreement.py --model FOLDER                  both engines, in bfloat16
    .venv/bin/python bench/agreement.py --model FOLDER --engine vllm    one of them

Before training, `RolloutPool.agreement` compares log-probs of a few samples. This script does the
same with a right engine, and with six that compute another model: a push left out a matrix, a norm
or a layer, brought another layer in its place, or exchanged two matrices, or the engine has other
rotary positions. Prints every figure, and writes
``bench/results/agreement.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, describe

from ttrl.data.questions import load_questions
from ttrl.learner.backends import make_trained_model
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.pretrained import load_tokenizer
from ttrl.rollout.agreement import LIMIT
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks

TEMPERATURES = (0.3, 1.0, 2.0)
"""At which a right engine is measured; a wrong one, at 1."""
LEFT_OUT = 1e-3
"""What vLLM fills a weight with that was not loaded: numbers up to this size."""

Weights = dict[str, torch.Tensor]
Fault = Callable[[Weights, int], None]


def left_out(*parts: str) -> Fault:
    """A push without the weights of the middle layer that hold one of ``parts`` in their names."""

    def change(weights: Weights, layer: int) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in of_layer(weights, layer):
            if any(part in name for part in parts):
                noise = torch.rand(weights[name].shape, generator=generator)
                weights[name] = (2 * noise - 1) * LEFT_OUT

    return change


def layer_before(weights: Weights, layer: int) -> None:
    """Put the layer before in the place of the middle one."""
    for name in of_layer(weights, layer):
        weights[name] = weights[name.replace(f".{layer}.", f".{layer - 1}.")]


def exchanged(one: str, other: str) -> Fault:
    """Two matrices of the middle layer in each other's place."""

    def change(weights: Weights, layer: int) -> None:
        for name in [n for n in of_layer(weights, layer) if one in n]:
            twin = name.replace(one, other)
            weights[name], weights[twin] = weights[twin], weights[name]

    return change


def of_layer(weights: Weights, layer: int) -> list[str]:
    """The names of a layer's weights."""
    return [name for name in weights if f".layers.{layer}." in name]


FAULTS: dict[str, Fault] = {
    "a matrix left out": left_out("q_proj"),
    "a norm left out": left_out("input_layernorm"),
    "a layer left out": left_out(""),
    "the layer before in its place": layer_before,
    "gate and up exchanged": exchanged("gate_proj", "up_proj"),
}
"""What can happen to a push."""


class Pushed:
    """A policy whose weights are changed on their way."""

    def __init__(self, policy: TrainedModel, fault: Fault) -> None:
        self.policy, self.fault = policy, fault

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, one of them or some faulty."""
        weights = dict(self.policy.named_weights())
        self.fault(weights, self.policy.model.config.num_hidden_layers // 2)
        yield from weights.items()


def slower_rotation(settings: Settings, folder: Path) -> Settings:
    """The same model with rotary positions of a tenth of the base."""
    shutil.copytree(settings.model.path, folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters", config)
    rope["rope_theta"] /= 10
    (folder / "config.json").write_text(json.dumps(config))
    model = settings.model.model_copy(update={"path": str(folder)})
    return settings.model_copy(update={"model": model})


def measure(engine: str, model: str) -> dict[str, Any]:
    """What each fault does to the agreement, by temperature."""
    base = load_settings(
        "tiny-arithmetic",
        overrides=[f"model.path={model}", "model.dtype=bfloat16", f"rollout.engine={engine}"],
    )
    tokenizer = load_tokenizer(base.model)
    questions = load_questions(base.data.train, base.data, tokenizer).questions[:4]
    found: dict[str, Any] = {}

    def note(name: str, pool: RolloutPool) -> None:
        for temperature in TEMPERATURES if name == "right" else (1.0,):
            rollout = base.rollout.model_copy(update={"temperature": temperature})
            policy.settings = base.model_copy(update={"rollout": rollout})
            params = SamplingParams(2, temperature, 32, stream=(0, "verify"))
            agreement = pool.agreement(policy, questions, params)
            found.setdefault(name, {})[temperature] = asdict(agreement)
            print(
                f"{engine:12}  {name:30}  T = {temperature}  logits {agreement.logits:7.4f}  "
                f"mean |Δ| {agreement.mean:.4f}  max {agreement.largest:6.3f}",
                flush=True,
            )

    policy = make_trained_model(base, Ranks())
    pool = make_pool(base, tokenizer, load_weights=False)
    pool.push_weights(policy)
    note("right", pool)
    for name, fault in FAULTS.items():
        pool.push_weights(Pushed(policy, fault))
        note(name, pool)
    pool.close()
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(
            slower_rotation(base, Path(folder) / "model"), tokenizer, load_weights=False
        )
        pool.push_weights(policy)
        note("another rotary base", pool)
        pool.close()
    return found


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="a folder in the Hugging Face format")
    parser.add_argument("--engine", choices=("transformers", "vllm"), help="only this one")
    arguments = parser.parse_args()
    engines = [arguments.engine] if arguments.engine else ["transformers", "vllm"]
    path = ROOT / "bench" / "results" / "agreement.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    model = Path(arguments.model).name
    for engine in engines:
        found = measure(engine, arguments.model)
        right = max(a["logits"] for a in found["right"].values())
        wrong = min(a["logits"] for n, by in found.items() for a in by.values() if n != "right")
        print(f"{engine}: right ≤ {right:.3f}, limit {LIMIT['bfloat16']}, wrong ≥ {wrong:.3f}")
        results[engine] = {"machine": describe(), "model": model, "agreement": found}
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
