"""Folders of runs, as if they had been made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import result

from ttrl.report.results import results_json
from ttrl.report.run_record import RunRecord, read_run
from ttrl.settings.recipe import load_settings


def make_run(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    scores: Mapping[int, Mapping[str, Sequence[float]]] | None = None,
    overrides: Sequence[str] = (),
    summary: Mapping[str, Any] | None = None,
    recipe: str = "tiny-arithmetic",
) -> RunRecord:
    """A run of these steps, with pass@1 per question after some: {0: {"train": [0.5, 1.0]}}."""
    (path / "evaluations").mkdir(parents=True)
    settings = load_settings(recipe, overrides=overrides)
    (path / "config.toml").write_text(settings.to_toml())
    lines = [{"step": number, **step} for number, step in enumerate(steps, start=1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, measured in (scores or {}).items():
        found = [
            replace(result("tiny-base", values, name), step=step)
            for name, values in measured.items()
        ]
        (path / "evaluations" / f"step_{step:05d}.json").write_text(results_json(found))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return read_run(path)
