"""One ZeRO-3 update of a real model's shape on one GPU: seconds by part, utilization, memory.

    .venv/bin/python bench/update_step.py                 Qwen2.5-1.5B's shape, 40 GB of the GPU
    .venv/bin/python bench/update_step.py --dry-run       a tiny shape on a CPU: does it run?

The weights are random and the samples too: neither changes how long anything takes. The GPU's
memory is capped, so that what fits here fits a card of that size. Writes
``bench/results/update_step.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import ROOT, describe
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from ttrl_kernels import FusedLMHead, PolicyLoss

from ttrl.config import Settings
from ttrl.memory import GIB
from ttrl.parts import make_repeatable
from ttrl.plan import Machine, plan
from ttrl.policy.attention import PACKED
from ttrl.policy.model import use_liger
from ttrl.policy.zero3 import Zero3Policy
from ttrl.ranks import join_ranks
from ttrl.recipe import load_settings
from ttrl.types import PackedBatch, TrainSample

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""bfloat16, dense, by what the GPU's name contains."""


class TimedPolicy(Zero3Policy):
    """Counts the seconds of each part of an update."""

    seconds: dict[str, float]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        _synchronize()
        begun = time.perf_counter()
        yield
        _synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun

    def _loss(self, batch: PackedBatch) -> PolicyLoss:
        with self._timed("forward and loss"):
            return super()._loss(batch)

    def _backward(self, loss: torch.Tensor) -> None:
        with self._timed("backward"):
            super()._backward(loss)

    def _gradient_norm(self) -> torch.Tensor:
        with self._timed("gradients"):
            return super()._gradient_norm()

    def _apply(self, rate: float, grad_norm: torch.Tensor) -> None:
        with self._timed("optimizer"):
            super()._apply(rate, grad_norm)


def random_model(shape: str, dtype: torch.dtype, *, liger: bool) -> PreTrainedModel:
    """Random weights of a shape, ready for packed training."""
    config = AutoConfig.for_model("qwen2", **SHAPES[shape])
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=PACKED
        )
    FusedLMHead.replace(model)
    if liger:
        use_liger(model)
    return model


def random_samples(count: int, longest: int, vocabulary: int) -> list[TrainSample]:
    """Answers from a third of the longest on, with prompts of a few hundred tokens."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        prompt = int(rng.integers(longest // 16, longest // 8))
        completion = int(rng.integers(longest // 3, longest))
        samples.append(
            TrainSample(
                f"q{i}",
                tuple(rng.integers(vocabulary, size=prompt).tolist()),
                tuple(rng.integers(vocabulary, size=completion).tolist()),
                tuple((-12 + rng.normal(size=completion)).tolist()),
                float(rng.choice([-1.0, 1.0])),
            )
        )
    return samples


def useful_flops(samples: list[TrainSample], shape: dict[str, Any], parameters: int) -> float:
    """Of one forward and backward pass: 6 per parameter and token, and causal attention.

    Recomputed activations are not counted; an embedding that is tied is the output layer's.
    """
    width = shape["hidden_size"] * shape["num_hidden_layers"]
    rows = [len(s.prompt_ids) + len(s.completion_ids) - 1 for s in samples]
    return sum(6 * parameters * n + 6 * width * n * n for n in rows)


def settings_for(options: argparse.Namespace, longest: int) -> Settings:
    """The paper's update, one question of it, in the token budget that is measured."""
    dtype = "float32" if options.dry_run else "bfloat16"
    return load_settings(
        "tiny-arithmetic",
        overrides=[
            f"model.dtype={dtype}",
            "policy.backend=zero3",
            f"policy.tokens_per_batch={options.tokens}",
            "policy.gradient_checkpointing=true",
            f"policy.liger_kernels={'true' if options.liger else 'false'}",
            f"rollout.max_new_tokens={longest}",
            f"data.max_prompt_tokens={longest // 8}",
            "policy.sequences_per_update=32",
            "policy.learning_rate=5e-7",
        ],
    )


def planned(settings: Settings, model: PreTrainedModel, memory_gb: float) -> dict[str, Any]:
    """What `ttrl plan` says about the update, in GiB."""
    found = plan(settings, model, Machine(gpus=1, memory_gib=memory_gb))
    return {p.name: {k: round(v / GIB, 3) for k, v in p.items.items()} for p in found.phases}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-gb", type=float, default=40.0)
    parser.add_argument("--tokens", type=int, default=16384, help="policy.tokens_per_batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--liger", action="store_true", help="with policy.liger_kernels")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape, nothing is written")
    options = parser.parse_args()
    name, longest = ("tiny", 96) if options.dry_run else ("qwen2.5-1.5b", 3072)
    if not options.dry_run:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gb / total))
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    for variable, value in {**alone, "MASTER_PORT": 29591}.items():
        os.environ.setdefault(variable, str(value))
    settings = settings_for(options, longest)
    make_repeatable(settings)
    model = random_model(name, getattr(torch, settings.model.dtype), liger=options.liger)
    plans = planned(settings, model, options.memory_gb)
    parameters = model.num_parameters()
    policy = TimedPolicy(model, settings, join_ranks())
    samples = random_samples(32, longest, SHAPES[name]["vocab_size"])
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds + 1):
        policy.seconds = {}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        _synchronize()
        begun = time.perf_counter()
        policy.update(samples, 5e-7)
        _synchronize()
        rounds.append({**policy.seconds, "update": time.perf_counter() - begun})
    seconds = {part: median(r[part] for r in rounds[1:]) for part in rounds[1]}
    tokens = sum(len(s.prompt_ids) + len(s.completion_ids) - 1 for s in samples)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((v for k, v in PEAK_TFLOPS.items() if k in gpu), None)
    rate = useful_flops(samples, SHAPES[name], parameters) / seconds["update"] / 1e12
    result = {
        "machine": describe(),
        "shape": name,
        "parameters": parameters,
        "memory_gb": options.memory_gb,
        "tokens_per_batch": options.tokens,
        "liger": options.liger,
        "tokens": tokens,
        "seconds": {part: round(s, 4) for part, s in seconds.items()},
        "tokens_per_s": round(tokens / seconds["update"], 1),
        "tflops": round(rate, 2),
        "model_flops_utilization": None if peak is None else round(rate / peak, 4),
        "planned_gib": plans,
        "measured_gib": {
            "allocated_peak": round(torch.cuda.max_memory_allocated() / GIB, 3),
            "reserved_peak": round(torch.cuda.max_memory_reserved() / GIB, 3),
        }
        if torch.cuda.is_available()
        else {},
    }
    print(json.dumps(result, indent=1))
    if not options.dry_run:
        name = "update_step_liger.json" if options.liger else "update_step.json"
        (ROOT / "bench" / "results" / name).write_text(
            json.dumps(result, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
