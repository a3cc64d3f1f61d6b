"""The row operation and the backends that can run it."""

from __future__ import annotations

from ttrl_kernels.rows import reference
from ttrl_kernels.rows.interface import RowBackend, RowGrads, RowStats

__all__ = ["RowBackend", "RowGrads", "RowStats", "backends", "resolve_backend"]

_BACKENDS: dict[str, RowBackend] = {"torch": reference}


def backends() -> dict[str, str]:
    """For each backend by name: "available", or the reason why it cannot run here."""
    return dict.fromkeys(_BACKENDS, "available")


def resolve_backend(name: str) -> RowBackend:
    """The backend of this name; "auto" is the PyTorch one.

    Raises ValueError for a name that does not exist: nothing falls back in silence.
    """
    if name == "auto":
        name = "torch"
    if name not in _BACKENDS:
        raise ValueError(f"backend is {name!r}, expected auto or one of {', '.join(_BACKENDS)}")
    return _BACKENDS[name]
