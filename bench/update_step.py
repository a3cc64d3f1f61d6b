"""One update of a real model's shape on one GPU: tokens per second, share of the peak, memory.

The weights are random and the samples too: neither changes how long anything takes. They are
loaded and trained on by the very functions that ``ttrl train`` calls; seconds and memory are
counted around the parts of `TrainedModel`. A part of ``bench/gpu_half_hour.sh``; by hand, with the
project and ``bench/gpu`` on PYTHONPATH:

    python bench/update_step.py FILE.json --shape qwen2.5-1.5b --backend zero3
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from record import Record, part_parser, skip
from transformers import AutoConfig, AutoModelForCausalLM

from ttrl.learner.backends import make_trained_model
from ttrl.learner.objective import Loss, Network, PreparedStep, Scorer
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.pretrained import load_bare_outline
from ttrl.plan import Machine, Plan, plan
from ttrl.plan.speed import update_flops
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.memory import GIB
from ttrl.system.ranks import Ranks, join_ranks
from ttrl.system.rng import make_repeatable
from ttrl.types import PackedBatch, TrainSample, UpdateResult, UserError

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
SHAPES = {
    "qwen2.5-0.5b": (151936, 896, 4864, 24, 14, 2, True),
    "qwen2.5-1.5b": (151936, 1536, 8960, 28, 12, 2, True),
    "qwen2.5-7b": (152064, 3584, 18944, 28, 28, 4, False),
    "tiny": (512, 64, 128, 2, 4, 2, True),
}
"""`SIZES` of each."""
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""bfloat16, dense, as its maker states it, by what the GPU's name contains."""

PARTS = {"_backward": "backward", "_apply": "optimizer"}
"""Methods of a policy, besides its objective's loss, in which an update spends
its time, and the plan's names of these moments."""
NOT_THE_TRAINER = ("engine weights", "CUDA, NCCL", "fragmentation")
"""What the plan counts and the trainer's allocator does not."""


class Meter:
    """An objective that takes the seconds and most memory of each part of a policy's updates."""

    def __init__(self, policy: TrainedModel) -> None:
        """Measure around the policy's methods from now on."""
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}
        for method, part in PARTS.items():
            setattr(policy, method, partial(self._measured, part, getattr(policy, method)))
        self.objective = PolicyObjective.of(policy.settings, policy)

    def has_gradient(self, sample: TrainSample) -> bool:
        """As the objective says."""
        return self.objective.has_gradient(sample)

    def token_weights(self, samples: Sequence[TrainSample]) -> list[float]:
        """As the objective says."""
        return self.objective.token_weights(samples)

    def prepared(self, steps: Sequence[Sequence[TrainSample]], score: Scorer) -> list[PreparedStep]:
        """As the objective says."""
        return self.objective.prepared(steps, score)

    def after_step(self, result: UpdateResult) -> None:
        """As the objective says."""
        self.objective.after_step(result)

    def loss(self, network: Network, batch: PackedBatch) -> Loss:
        """The objective's, measured."""
        loss: Loss = self._measured("loss", self.objective.loss, network, batch)
        return loss

    def _measured(self, part: str, method: Callable[..., Any], *arguments: Any) -> Any:
        synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        result = method(*arguments)
        synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun
        self.peak_gib[part] = max(self.peak_gib.get(part, 0.0), peak_gib())
        return result


def main() -> None:
    """Measure without Liger and with it, and write both."""
    parser = part_parser(__doc__)
    parser.add_argument("--shape", choices=[*SHAPES], default="qwen2.5-1.5b")
    parser.add_argument("--backend", choices=("local", "zero3"), default="local")
    parser.add_argument("--lora-rank", type=int, default=None)
    parser.add_argument("--without-liger", action="store_true", help="leave out the second time")
    parser.add_argument("--tokens", type=int, default=16384, help="memory.tokens_per_batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--least-gib", type=float, default=0.0, help="skip on a smaller GPU")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not (on_gpu or options.dry_run):
        raise SystemExit("no CUDA device; --dry-run goes through it without")
    seen_gib = torch.cuda.get_device_properties(0).total_memory / GIB if on_gpu else 40.0
    if seen_gib < options.least_gib and not options.dry_run:
        skip(f"needs a GPU of {options.least_gib:g} GiB; this one has {seen_gib:.1f}")
    if options.dry_run:
        options.shape, options.tokens, options.rounds = "tiny", 1024, 1
    record = Record(options.output)
    record["options"] = {k: v for k, v in vars(options).items() if k not in ("output", "dry_run")}
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(options.shape, Path(folder))
        ranks = alone() if options.backend == "zero3" else Ranks()
        for liger in (False,) if options.without_liger else (False, True):
            try:
                settings = settings_for(options, folder, liger=liger)
                found = measure(settings, ranks, options.rounds, seen_gib)
            except UserError as error:  # no GPU, or no liger-kernel
                found = {"skipped": str(error)}
            record["liger" if liger else "plain"] = found


def measure(settings: Settings, ranks: Ranks, count: int, seen_gib: float) -> dict[str, Any]:
    """Load, update a few times, and compare with the plan."""
    make_repeatable(settings.threads, settings.seed)
    machine = Machine(1, seen_gib, usable_share=1.0)  # torch says what a program sees
    found = plan(settings, load_bare_outline(settings.model), machine)
    samples = random_samples(settings, found.job.shape.vocabulary)
    empty()
    policy = make_trained_model(settings, ranks)
    loading = peak_gib()
    rounds: list[dict[str, float]] = []
    meter = Meter(policy)
    for _ in range(count + 1):
        meter.seconds = {}
        begun = time.perf_counter()
        policy.update(samples, meter, 5e-7)
        synchronize()
        rounds.append({**meter.seconds, "update": time.perf_counter() - begun})
    seconds = {part: median(r[part] for r in rounds[1:]) for part in rounds[0]}
    memory = memory_found(loading, meter.peak_gib)
    lengths = [len(s.token_ids) for s in samples]
    return {
        "parameters": found.job.shape.parameters,
        "tokens": sum(lengths),
        "tokens_per_s": sum(lengths) / seconds["update"],
        "seconds": seconds,
        **speed(found, lengths, seconds),
        "planned_gib": planned_gib(found),
        "measured_gib": memory,
    }


def speed(found: Plan, lengths: Sequence[int], seconds: Mapping[str, float]) -> dict[str, Any]:
    """10^12 operations per second of each part, and their share of the peak.

    Operations are the plan's: recomputed layers count, since the GPU does them, but not in
    ``model_flops_utilization``.
    """
    job, shape = found.job, found.job.shape
    body = sum(2 * (shape.body + shape.layers * shape.query * n) * n for n in lengths)
    head = 2 * shape.head * sum(lengths) * (2 if job.adapters else 3)  # gradients are made at once
    every = sum(update_flops(job, n) * n for n in lengths)
    useful = every - body * job.settings.memory.gradient_checkpointing
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((v for k, v in PEAK_TFLOPS.items() if k in gpu), None)
    flops = {"loss": body + head, "backward": every - body - head, "update": every}
    tflops = {part: count / seconds[part] / 1e12 for part, count in flops.items()}
    return {
        "tflops": tflops,
        "share_of_peak": None if peak is None else {k: v / peak for k, v in tflops.items()},
        "model_flops_utilization": peak and useful / seconds["update"] / 1e12 / peak,
    }


def planned_gib(found: Plan) -> dict[str, dict[str, float]]:
    """What the plan says that the trainer holds, by moment and purpose, and in all."""
    moments = {}
    for phase in found.phases:
        items = {k: v / GIB for k, v in phase.items.items() if k not in NOT_THE_TRAINER}
        if phase.name in ("load", "loss", *PARTS.values()):
            moments[phase.name] = {**items, "total": sum(items.values())}
    return moments


def memory_found(loading: float, parts: Mapping[str, float]) -> dict[str, Any]:
    """What torch's allocator held; nothing without a GPU.

    ``lost_share`` is what it reserved beyond the most that was in use, of all that came and went.
    """
    if not torch.cuda.is_available():
        return {}
    resident = torch.cuda.memory_allocated() / GIB
    reserved, most = torch.cuda.max_memory_reserved() / GIB, max(parts.values())
    return {
        "load": loading,
        **parts,
        "after_update": resident,
        "reserved": reserved,
        "lost_share": (reserved - most) / (most - resident),
    }


def settings_for(options: Namespace, folder: str, *, liger: bool) -> Settings:
    """The paper's update, one question of it, in the token budget that is measured."""
    longest = 96 if options.dry_run else 3072
    overrides = [
        f"model.path={json.dumps(folder)}",
        f"model.dtype={'float32' if options.dry_run else 'bfloat16'}",
        f"policy.backend={options.backend}",
        f"memory.tokens_per_batch={options.tokens}",
        "memory.gradient_checkpointing=true",
        f"memory.liger_kernels={'true' if liger else 'false'}",
        f"rollout.max_new_tokens={longest}",
        f"data.max_prompt_tokens={longest // 8}",
        "policy.sequences_per_update=32",
        "optimizer.learning_rate=5e-7",
        f"threads={1 if options.dry_run else 'none'}",
    ]
    if options.lora_rank is not None:
        overrides.append(f"lora.rank={options.lora_rank}")
    return load_settings("tiny-arithmetic", overrides=overrides)


def write_random_model(shape: str, folder: Path) -> None:
    """A model folder with weights that transformers draws, in bfloat16."""
    sizes = dict(zip(SIZES, SHAPES[shape], strict=True))
    config = AutoConfig.for_model("qwen2", **sizes, max_position_embeddings=32768)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def random_samples(settings: Settings, vocabulary: int, count: int = 32) -> list[TrainSample]:
    """Answers from a third of the longest on, with prompts of a few hundred tokens."""
    rng, longest = np.random.default_rng(0), settings.rollout.max_new_tokens
    samples = []
    for i in range(count):
        prompt = int(rng.integers(longest // 16, longest // 8))
        completion = int(rng.integers(longest // 3, longest))
        samples.append(
            TrainSample.of_answer(
                f"q{i}",
                tuple(rng.integers(vocabulary, size=prompt).tolist()),
                tuple(rng.integers(vocabulary, size=completion).tolist()),
                tuple((-12 + rng.normal(size=completion)).tolist()),
                float(rng.choice([-1.0, 1.0])),
            )
        )
    return samples


def alone() -> Ranks:
    """The only rank of a launch, as torchrun would start it."""
    launch = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    for variable, value in {**launch, "MASTER_PORT": 29591}.items():
        os.environ.setdefault(variable, str(value))
    return join_ranks()


def empty() -> None:
    """Give back what an earlier policy held, and forget its peaks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most that was in use at once since the last reset."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def synchronize() -> None:
    """Wait until the GPU has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
