"""verl's side of a reward manager, as far as its documents and its 0.9.1 show it.

It stands in for verl where that is not installed: it shows that our manager keeps to the interface,
and not that verl still has it. `test_verl_reward.py` runs the same with the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

REGISTERED: dict[str, type] = {}


def register(name: str) -> Callable[[type], type]:
    """Make a reward manager known by name."""

    def add(manager: type) -> type:
        REGISTERED[name] = manager
        return manager

    return add


class RewardManagerBase:
    """What verl gives its managers."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score


@dataclass
class Row:
    """One answer."""

    batch: dict[str, torch.Tensor]
    non_tensor_batch: dict[str, Any]


class Rows(list[Row]):
    """A `DataProto`, of which parts can be taken."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return Rows(found) if isinstance(at, slice) else found


def modules() -> dict[str, ModuleType]:
    """By name, what `ttrl.integrations.verl` imports."""
    manager = ModuleType("verl.experimental.reward_loop.reward_manager")
    base = ModuleType(f"{manager.__name__}.base")
    manager.register, base.RewardManagerBase = register, RewardManagerBase  # type: ignore[attr-defined]
    parents = ["verl", "verl.experimental", "verl.experimental.reward_loop"]
    return {**{n: ModuleType(n) for n in parents}, manager.__name__: manager, base.__name__: base}
