"""Names on disk of what belongs to a step."""

from __future__ import annotations

import re
from pathlib import Path

STEP_NAME = "step_([0-9]{5}|[1-9][0-9]{5,})"
"""A step's name as a regular expression; anything else in a run's folder is a user's."""

ROLLOUT_NAME = re.compile(rf"{STEP_NAME}\.(jsonl|safetensors)")
"""Names of the files of a step's answers."""


def step_file(folder: Path, step: int, kind: str) -> Path:
    """Return the file of a step; ``kind`` is "jsonl", "safetensors", "json" or "posed.jsonl"."""
    return folder / f"step_{step:05d}.{kind}"
