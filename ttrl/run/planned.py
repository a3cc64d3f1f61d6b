"""What was planned for the GPU that a run is on, to be compared with what it uses."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ttrl.models.pretrained import load_bare_outline
from ttrl.plan.choose import plan
from ttrl.plan.machine import Machine
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
    return {"rollout": totals["rollout"], "update": update}
