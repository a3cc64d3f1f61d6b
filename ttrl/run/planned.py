"""What was planned for the GPU that a run is on, to be compared with what it uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch

from ttrl.models.pretrained import load_bare_outline
from ttrl.plan.choose import plan
from ttrl.plan.machine import Machine
from ttrl.rollout.agreement import Agreement
from ttrl.settings import Settings
from ttrl.settings.backend import backend_of
from ttrl.system.launch import launched
from ttrl.system.memory import GIB
from ttrl.types import UserError


def planned_memory(
    settings: Settings, ranks: int, note: Callable[[str], object]
) -> dict[str, float]:
    """Plan what a GPU holds in rollout and update, in GiB.

    Empty without a GPU, and for what cannot be planned, which ``note`` is told: that is no reason
    not to train.
    """
    if not torch.cuda.is_available():
        return {}
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    machine = Machine(
        ranks,
        memory,
        usable_share=1.0,  # torch says what a program sees
        gpus_per_node=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    backend = backend_of(settings, launched=launched())
    policy = settings.policy.model_copy(update={"backend": backend})
    settings = settings.model_copy(update={"policy": policy})
    try:
        found = plan(settings, load_bare_outline(settings.model), machine)
    except UserError as error:
        note(f"no memory plan: {error}")
        return {}
    totals = {phase.name: phase.total / GIB for phase in found.phases}
    update = max(totals[name] for name in ("loss", "backward", "optimizer"))
    rollout = max(totals[name] for name in ("rollout", "judge") if name in totals)
    return {"rollout": rollout, "update": update}


def figures_of_the_start(
    step: int,
    planned: Mapping[str, float],
    agreement: Agreement | None,
    metrics: Mapping[str, float],
    note: Callable[[str], object],
) -> dict[str, float]:
    """Return what was planned of the memory, and in the first step what is known of the engine.

    Args:
        step: the training step.
        planned: see `planned_memory`.
        agreement: of engine and policy; None: they were not compared.
        metrics: of the step.
        note: is told once how much of the memory is used.
    """
    found = {f"memory/{phase}_planned": gib for phase, gib in planned.items()}
    if step == 1 and agreement is not None:
        found["mismatch/at_start"] = agreement.mean
        found["mismatch/at_start_logits"] = agreement.logits
    if step == 1 and planned:
        pairs = [f"{p} {gib:.1f}, {metrics[f'memory/{p}_gpu']:.1f}" for p, gib in planned.items()]
        note(f"GPU memory in GiB, planned and in use: {'; '.join(pairs)}")
    return found
