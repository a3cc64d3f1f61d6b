"""The row operation and the backends that can run it.

A backend is imported when it is first used, so that neither Triton nor a compiled extension has to
be there. Nothing falls back in silence: a backend that was asked for by name runs or raises, and
"auto" logs what it chose.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ttrl_kernels.rows.interface import RowBackend, RowGrads, RowStats

__all__ = ["RowBackend", "RowGrads", "RowStats", "backends", "chosen_backend", "resolve_backend"]

AVAILABLE = "available"


def _triton_state() -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; PyTorch for CUDA on Linux comes with it"
    import triton

    if triton.knobs.runtime.interpret:
        return f"{AVAILABLE} in Triton's interpreter, which is for tests: TRITON_INTERPRET is set"
    return AVAILABLE if torch.cuda.is_available() else "PyTorch sees no CUDA device"


def _native_state() -> str:
    from ttrl_kernels.rows import native

    return native.missing or AVAILABLE


_STATES: dict[str, Callable[[], str]] = {
    "triton": _triton_state,
    "native": _native_state,
    "torch": lambda: AVAILABLE,
}

_PREFERENCES = {"cuda": ("triton", "torch"), "cpu": ("native", "torch")}
"""Backends that "auto" tries, best first, by type of device; on others only the PyTorch rows."""


def backends() -> dict[str, str]:
    """Say of each backend, by name: "available", maybe with a remark, or why it cannot run here."""
    return {name: state() for name, state in _STATES.items()}


def resolve_backend(name: str, hidden_TH: Tensor) -> RowBackend:
    """Return the backend of this name; "auto" is the fastest that can run on these hidden states.

    Raises ValueError for a name that does not exist and for a backend that cannot run here.
    """
    if name == "auto":
        return _load(chosen_backend(hidden_TH.device.type, hidden_TH.dtype))
    if name not in _STATES:
        raise ValueError(f"backend is {name!r}, expected auto or one of {', '.join(_STATES)}")
    state = _STATES[name]()
    if not state.startswith(AVAILABLE):
        raise ValueError(f"backend is {name!r}, which cannot run here: {state}; use 'auto'")
    return _load(name)


@cache
def chosen_backend(device: str, dtype: torch.dtype = torch.float32) -> str:
    """Name what "auto" takes for hidden states on a type of device ("cpu", "cuda") in a dtype."""
    # Only PyTorch's rows work in float64.
    names = ("torch",) if dtype == torch.float64 else _PREFERENCES.get(device, ("torch",))
    states = {name: _STATES[name]() for name in names}
    chosen = next(name for name, state in states.items() if state.startswith(AVAILABLE))
    why = "".join(f"; {n}: {s}" for n, s in states.items() if not s.startswith(AVAILABLE))
    logging.getLogger(__name__).info("row backend for %s on %s: %s%s", dtype, device, chosen, why)
    return chosen


def _load(name: str) -> RowBackend:
    if name == "triton":
        from ttrl_kernels.rows import triton

        return triton
    if name == "native":
        from ttrl_kernels.rows import native

        return native
    from ttrl_kernels.rows import reference

    return reference
