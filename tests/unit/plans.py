"""Plans of shipped recipes, from config files alone."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ttrl.models.pretrained import load_bare_outline
from ttrl.plan import GIB, Machine, ModelShape, Plan, plan
from ttrl.plan.memory import Job
from ttrl.settings import ModelSettings
from ttrl.settings.recipe import load_settings, recipe_names

CONFIGS = Path(__file__).parent / "model_configs"
A100_40GB = Machine(8, 40)
H100_80GB = Machine(8, 80).changed(
    ["tflops=989", "hbm_gb_s=3350", "link_gb_s=400", "pcie_gb_s=50", "host_gb_s=400"]
)
MACHINES = {
    "8xa100-40gb": A100_40GB,
    "1x40gb": Machine(1, 40),
    "1x24gb": Machine(1, 24),
    "8xh100-80gb": H100_80GB,
    "16xh100-80gb": dataclasses.replace(H100_80GB, gpus=16, node_link_gb_s=50),
}
RECIPES = [name for name in recipe_names() if "/" in name]


@functools.cache
def outline(model: str) -> Any:
    return load_bare_outline(ModelSettings(path=str(CONFIGS / f"{model}.json")))


def plan_of(recipe: str, *overrides: str, machine: Machine | None = None) -> Plan:
    """A machine's recipe on its own machine, or another."""
    place, _, name = recipe.partition("/")
    settings = load_settings(recipe, overrides=overrides)
    return plan(settings, outline(name.removesuffix("-lora")), machine or MACHINES[place])


def job_of(recipe: str, *overrides: str) -> Job:
    """A machine's recipe, not planned yet."""
    place, _, name = recipe.partition("/")
    settings = load_settings(recipe, overrides=overrides)
    return Job(ModelShape.of(outline(name.removesuffix("-lora"))), settings, MACHINES[place])


def gib(found: Plan, phase: str, *items: str) -> float:
    """GiB of some items of a phase, or its total."""
    (one,) = (p for p in found.phases if p.name == phase)
    return (sum(one.items.get(i, 0) for i in items) if items else one.total) / GIB
