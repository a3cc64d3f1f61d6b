"""What a run needs on each GPU and how long its steps take, before anything is loaded.

    plan(settings, outline, machine) -> Plan

Everything follows from the model's outline (shapes without weights), the settings, and a `Machine`
whose every assumption is a field. `docs/plan.md` derives the formulas; the tests compare them with
what torch allocates.
"""

from ttrl.plan.choose import Plan, plan
from ttrl.plan.machine import GIB, Machine
from ttrl.plan.shape import ModelShape
from ttrl.plan.timeline import Phase

__all__ = ["GIB", "Machine", "ModelShape", "Phase", "Plan", "plan"]
