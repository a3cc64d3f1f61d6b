"""The plan of a run: whether it fits its GPUs, and which settings make the most of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ttrl.plan.host import host_lacking, host_memory
from ttrl.plan.machine import MOST, Machine
from ttrl.plan.memory import Job, kv_cache, kv_tokens, refuse_impossible
from ttrl.plan.reward_model import judge_outline
from ttrl.plan.shape import ModelShape
from ttrl.plan.speed import seconds
from ttrl.plan.timeline import Phase, lacking, phases, spare
from ttrl.plan.turns import turns_of
from ttrl.settings import Settings

TOKEN_BUDGETS = (4096, 8192, 16384, 32768, 65536)
TENSOR_PARALLEL = (1, 2, 4, 8)
OFFLOADS = ((False, False), (True, False), (False, True))
"""memory.offload_during_rollout and memory.offload_optimizer."""
RECOMPUTED = ((False, 1.0), (True, 0.25), (True, 0.5), (True, 0.75), (True, 1.0))
"""memory.gradient_checkpointing and memory.recompute_share."""
WIDEST = 0.95
WORTH_A_CHANGE = 1.05
"""Steps that differ by less are as short as each other: the rates are not known that well."""
CHOSEN = (
    "memory.tokens_per_batch",
    "memory.gradient_checkpointing",
    "memory.recompute_share",
    "memory.offload_during_rollout",
    "memory.offload_optimizer",
    "rollout.tensor_parallel",
    "rollout.gpu_memory_share",
)
"""What a plan may choose; everything else changes what is learned, or is the user's business."""


@dataclass(frozen=True)
class Plan:
    """A run's needs, and what could be better."""

    job: Job
    phases: tuple[Phase, ...]
    """What one GPU holds at each moment at which memory can peak."""
    seconds: Mapping[str, float]
    """Seconds of each part of a step."""
    kv_tokens: int
    """Tokens that one engine's KV cache holds."""
    problems: tuple[str, ...]
    """Why it does not fit; empty where it does."""
    choices: Mapping[str, Any]
    """The `CHOSEN` settings of the fastest plan that fits; empty where none does."""
    chosen_seconds: float | None
    """Seconds of a step with the choices."""
    repair: Mapping[str, Any]
    """The fewest changes of `CHOSEN` that make it fit; empty where it fits, or cannot."""
    remedy: str
    """Advice on what would make it fit, where no choice does; else empty."""

    @property
    def fits(self) -> bool:
        """Whether the run fits with the settings it has."""
        return not self.problems

    @property
    def changes(self) -> dict[str, Any]:
        """The choices that are not what the settings already say."""
        return _changes(self.job.settings, self.choices)

    @property
    def advice(self) -> str:
        """The one line that says what to change; empty where nothing has to be."""
        if self.fits:
            return ""
        sets = " ".join(f"--set {key}={_toml(value)}" for key, value in self.repair.items())
        return f"{'; '.join(self.problems)}; {sets or self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of the plan as JSON: bytes, seconds, settings."""
        return {
            "fits": self.fits,
            "usable_bytes": self.job.machine.usable,
            "phases": {p.name: {**p.items, "total": p.total} for p in self.phases},
            "seconds": dict(self.seconds),
            "kv_tokens": self.kv_tokens,
            "longest_sequence": self.job.longest,
            "logits_chunk_rows": self.job.chunk_rows,
            "nodes": self.job.machine.nodes,
            "host": host_memory(self.job),
            "problems": list(self.problems),
            "choices": dict(self.choices),
            "chosen_seconds": self.chosen_seconds,
            "advice": self.advice,
        }


def plan(
    settings: Settings,
    outline: PreTrainedModel,
    machine: Machine,
    judge_config: Path | None = None,
) -> Plan:
    """Plan a run.

    Args:
        settings: the run; ``policy.backend = None`` means zero3 on more than one GPU.
        outline: the model, which needs no weights (`ttrl.models.pretrained.load_outline`).
        machine: the GPUs, and the rates to count with.
        judge_config: the config.json of the reward model that the run loads; None: it is where the
            run finds it.

    Raises:
        UserError: for a model, a tensor_parallel or a workflow that cannot be planned.
    """
    turns = turns_of(settings, machine)
    judge = judge_outline(settings, judge_config)
    job = Job(
        ModelShape.of(outline),
        settings,
        machine,
        None if judge is None else ModelShape.of(judge),
        turns,
    )
    refuse_impossible(job)
    found, fitting = tuple(problems(job)), _fitting(job)
    best = _fastest(job, fitting)
    choices = {} if best is None else _choices(best)
    nearest = min(fitting, key=lambda c: _distance(job, c), default=job)
    return Plan(
        job=job,
        phases=phases(job),
        seconds=seconds(job),
        kv_tokens=kv_tokens(job),
        problems=found,
        choices=choices,
        chosen_seconds=None if best is None else sum(seconds(best).values()),
        repair=_changes(job.settings, _choices(nearest)) if found else {},
        remedy="" if fitting else _remedy(job),
    )


def problems(job: Job) -> Iterator[str]:
    """Yield each phase that is too large, a KV cache that is too small, and a host that is."""
    yield from lacking(job)
    if job.vllm and kv_tokens(job) < job.longest:
        yield (
            f"rollout.gpu_memory_share = {job.settings.rollout.gpu_memory_share} leaves a KV cache "
            f"of {kv_tokens(job)} tokens, fewer than one sequence of {job.longest}"
        )
    yield from host_lacking(job)


def _fitting(job: Job) -> list[Job]:
    return [candidate for candidate in _candidates(job) if not any(problems(candidate))]


def _fastest(job: Job, fitting: Sequence[Job]) -> Job | None:
    """Choose a job whose step is as short as any, with the fewest changes."""
    if not fitting:
        return None
    times = [sum(seconds(candidate).values()) for candidate in fitting]
    near = [c for c, t in zip(fitting, times, strict=True) if t <= WORTH_A_CHANGE * min(times)]
    return min(near, key=lambda candidate: _distance(job, candidate))


def _distance(job: Job, candidate: Job) -> tuple[int, float]:
    """Count the settings that differ; then how long a step takes."""
    changes = _changes(job.settings, _choices(candidate))
    return len(changes), sum(seconds(candidate).values())


def _choices(job: Job) -> dict[str, Any]:
    return {key: _value(job.settings, key) for key in CHOSEN}


def _changes(settings: Settings, choices: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in choices.items() if value != _value(settings, key)}


def _candidates(job: Job) -> Iterator[Job]:
    """Yield every combination of the `CHOSEN` settings that the rules allow."""
    shape, rollout = job.shape, job.settings.rollout
    needed = job.settings.data.max_prompt_tokens + rollout.max_new_tokens
    budgets = {job.settings.memory.tokens_per_batch, *TOKEN_BUDGETS, -(-needed // 1024) * 1024}
    parallel = [
        n
        for n in TENSOR_PARALLEL
        if not (job.machine.in_node % n or shape.heads % n or shape.kv_heads % n)
    ]
    offloads = OFFLOADS if job.zero3 else ((False, False),)
    options = itertools.product(
        sorted(b for b in budgets if b >= needed),
        RECOMPUTED,
        offloads,
        parallel if job.vllm else [1],
    )
    for tokens, recomputation, (during_rollout, optimizer), tensor_parallel in options:
        memory = {
            "tokens_per_batch": tokens,
            "gradient_checkpointing": recomputation[0],
            "recompute_share": recomputation[1],
            "offload_during_rollout": during_rollout,
            "offload_optimizer": optimizer,
        }
        candidate = _with(job, memory=memory, rollout={"tensor_parallel": tensor_parallel})
        yield candidate
        if job.vllm and (share := widest_share(candidate)) > 0:
            yield _with(candidate, rollout={"gpu_memory_share": share})


def widest_share(job: Job) -> float:
    """Find the largest gpu_memory_share beside which the trainer fits; 0 if there is none."""
    wide = _with(job, rollout={"gpu_memory_share": WIDEST})
    if not kv_cache(wide):
        return 0.0
    share = WIDEST + min(0, spare(wide)) / job.machine.usable
    return max(0.0, math.floor(100 * share) / 100)


def _with(job: Job, **sections: Mapping[str, Any]) -> Job:
    """Return the job with changes to its settings, section by section."""
    update = {
        section: getattr(job.settings, section).model_copy(update=changes)
        for section, changes in sections.items()
    }
    return replace(job, settings=job.settings.model_copy(update=update))


def _remedy(job: Job) -> str:
    """Say what a plan does not choose and would make it fit: engine, adapters, more GPUs."""
    found = []
    if not job.vllm and _fitting(_with(job, rollout={"engine": "vllm"})):
        found.append("--set rollout.engine=vllm")
    if job.settings.lora.rank is None and _fitting(_with(job, lora={"rank": 64})):
        found.append("--set lora.rank=64")
    zero3 = _with(job, policy={"backend": "zero3"})
    for gpus in (2 * job.machine.gpus, 4 * job.machine.gpus, 8 * job.machine.gpus):
        if gpus <= MOST and _fitting(replace(zero3, machine=replace(job.machine, gpus=gpus))):
            found.append(f"{gpus} GPUs of {job.machine.memory_gib:g} GiB with zero3")
            break
    enough = "no token budget, checkpointing, offload, tensor parallelism or share is enough"
    return f"{enough}: try {' or '.join(found)}" if found else enough


def _value(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
