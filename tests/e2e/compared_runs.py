"""What differs between two runs, bit for bit, apart from what a clock or the memory decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def differences(first: Path, second: Path) -> set[str]:
    """The names of what differs; empty for runs that are the same."""
    ours, theirs = _contents(first), _contents(second)
    names = ours.keys() | theirs.keys()
    return {name for name in names if ours.get(name) != theirs.get(name)}


def _contents(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    del summary["wall_s"]
    summary.get("stream", {}).pop("seconds_per_question", None)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
        for line in lines
    ]
    contents: dict[str, Any] = {"summary": summary, "metrics": metrics}
    for folder in ("rollouts", "evaluations"):
        for path in (run / folder).iterdir() if (run / folder).is_dir() else ():
            contents[f"{folder}/{path.name}"] = path.read_bytes()
    contents["model"] = (run / "model" / "model.safetensors").read_bytes()
    last = sorted((run / "checkpoints").iterdir())[-1]
    state = json.loads((last / "state.json").read_text())
    del state["parts"]["clock"]
    state["parts"].get("prequential", {}).pop("seconds", None)
    contents |= {f"state/{key}": value for key, value in (state | state.pop("parts")).items()}
    for path in sorted(last.glob("*.safetensors")):  # weights, moments, what is kept
        contents[f"{last.name}/{path.name}"] = path.read_bytes()
    return contents
