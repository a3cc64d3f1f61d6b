"""Pools of one engine that commands and runs are given, in a process that asks for many."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch

from ttrl import build, cli, trainer
from ttrl.evaluation import measuring
from ttrl.models.pretrained import load_model
from ttrl.rollout.engines.base import CountingEngine
from ttrl.rollout.pool import RolloutPool
from ttrl.settings import Settings
from ttrl.system import ranks as ranks_module
from ttrl.system.ranks import Ranks

MakePool = Callable[..., RolloutPool]


def shared(engine: CountingEngine, ranks: Ranks | None = None) -> MakePool:
    """As `make_pool`, of one engine for all, which stays when a pool is closed.

    Args:
        engine: samples for every pool.
        ranks: who has such an engine; None: this process alone.
    """

    def make(settings: Settings, *more: Any, load_weights: bool = True) -> RolloutPool:
        if load_weights:
            engine.load_weights(load_model(settings.model, torch.float32).named_parameters())
        pool: Any = RolloutPool(engine, ranks or Ranks())
        pool.close = lambda: None
        return pool  # type: ignore[no-any-return]

    return make


def give(make_pool: MakePool) -> None:
    """Have runs and commands ask this for their pools."""
    for module in (build, measuring):
        module.make_pool = make_pool  # type: ignore[attr-defined]


def stay_in_groups() -> None:
    """What ends a run, or a command, would end the engine's groups of processes."""
    for module in (ranks_module, trainer):
        module.leave_ranks = lambda: None  # type: ignore[attr-defined]


def command(*arguments: str) -> None:
    """Run a command line here, to its good end."""
    sys.argv = ["ttrl", *arguments]
    with redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, end.code
