"""Mistakes with devices, planted in our own code while it runs: each must be caught."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

UPDATE = "ttrl.learner.trained_model"
SUMS = "ttrl.learner.step_sums"

MIX_UPS = {
    "a batch stays on the CPU": (
        UPDATE,
        "objective.loss(self.network, moved(batch, self.model.device))",
        "objective.loss(self.network, batch)",
    ),
    "a batch of old log-probs stays on the CPU": (
        UPDATE,
        "moved(batch_of(together, [0.0] * len(together)), self.model.device)",
        "batch_of(together, [0.0] * len(together))",
    ),
    "log-probs stay on the GPU": (
        SUMS,
        "value_T.cpu()[live_T].sum()",
        "(value_T * live_T).sum()",
    ),
    "the mask is not that of its device": (
        SUMS,
        "value_T.cpu()[live_T].tolist()",
        "live_T[value_T > 0].tolist()",
    ),
}
"""By name: module, what stands there, and what is put in its place."""

ATTENTION = "ttrl.models.attention"

OTHERS = {
    "float32 queries under autocast": (
        ATTENTION,
        "query_1HTD.to(value_1KTD.dtype), key_1KTD.to(value_1KTD.dtype)",
        "query_1HTD, key_1KTD",
    ),
    "torch 2.11 is asked for groups": (ATTENTION, "if knows_groups:", "if True:"),
    "deterministic mode only warns": (
        "ttrl.system.rng",
        'debug_mode("error" if',
        'debug_mode("warn" if',
    ),
}
"""Mistakes that are none of devices, as above."""


@contextmanager
def planted(module: str, old: str, new: str) -> Iterator[None]:
    """Inside, the functions of ``module`` are as if ``new`` stood in its source, not ``old``."""
    live = importlib.import_module(module)
    source = Path(inspect.getfile(live)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{module} has {source.count(old)} places for a mistake: {old}"
    changed = dict(_codes(compile(source.replace(old, new), inspect.getfile(live), "exec")))
    functions = [f for f in _functions(live) if f.__code__.co_qualname in changed]
    before = [f.__code__ for f in functions]
    for function in functions:
        function.__code__ = changed[function.__code__.co_qualname]
    try:
        yield
    finally:
        for function, code in zip(functions, before, strict=True):
            function.__code__ = code


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Those that a module and its classes define."""
    scopes: list[Any] = [module, *(v for v in vars(module).values() if inspect.isclass(v))]
    for scope in scopes:
        for value in vars(scope).values():
            function = inspect.unwrap(getattr(value, "__func__", value))
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                yield function
