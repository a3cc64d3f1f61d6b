"""The settings of a run that is small enough to be made many times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ttrl.data.arithmetic import question_rows

HERE = Path(__file__).parent

SMALL = (
    f"data.train={HERE / 'few_train.jsonl'}",  # measured before and after, as are the others
    f"data.held_out={HERE / 'few_held_out.jsonl'}",
    "max_steps=2",
    "rollout.questions_per_step=4",
    "rollout.votes=8",
    "rollout.max_new_tokens=48",
    "policy.trained_samples=6",
    "policy.sequences_per_update=12",  # so that a step has two updates
    "evaluation.samples=2",
    "threads=1",
    "report.every_s=0",  # each page takes seconds; test_train.py and test_live_report.py have it
)

UNMEASURED = (f"data.train={HERE / 'few_unlabelled.jsonl'}", "data.held_out=none")
"""The same questions without answers: nothing is measured, which takes half of such a run's time.
For runs whose scores nobody looks at."""

Run = Callable[..., Path]


def with_labels(folder: Path, labels: str, count: int) -> str:
    """The first embedded questions as a file, their labels "right", "wrong" or "removed".

    Returns the override that names the file.
    """
    rows = question_rows("train")[:count]
    for row in rows:
        if labels == "removed":
            del row["answer"]
        elif labels == "wrong":
            row["answer"] = "1"
    path = folder / f"{labels}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"data.train={path}"


def interrupted(run: Path, copy: Path, step: int) -> Path:
    """A copy of a finished run, as if it had been killed after ``step`` was saved."""
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return copy
