"""The lines of a run's metrics, as they are on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """Those of steps, without that of what was measured before, which is step 0."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["step"] > 0]
