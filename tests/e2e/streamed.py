"""A short run on a stream that can be killed and gone on with.

By itself, or under torchrun: ``streamed.py FOLDER SETTING...``.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from small_run import SMALL

from ttrl.data import arithmetic
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train

END = '{"end_of_stream": true}\n'
SETTINGS = [
    *(s for s in SMALL if not s.startswith(("data.", "max_steps="))),
    "data.held_out=none",
    "rollout.questions_per_step=2",
    "stream.patience_s=600",
    "checkpoint.every=2",
]
PER_QUESTION = [
    *SETTINGS,
    "rollout.questions_per_step=1",
    "policy.sequences_per_update=6",
    "lora.rank=2",
    "stream.reset=per_question",
    "stream.visits=2",
    "stream.warmup_steps=0",
    "optimizer.learning_rate=1e-2",
]


def rows(count: int) -> list[dict[str, Any]]:
    """So many additions of two digits."""
    rng = random.Random("streamed")
    pairs = [(arithmetic.operand(rng, 1), arithmetic.operand(rng, 1)) for _ in range(count)]
    return [
        {"id": f"q{i}", "prompt": arithmetic.question(a, b), "answer": a + b}
        for i, (a, b) in enumerate(pairs)
    ]


def write(
    path: Path, count: int, answer: Callable[[int, Any], Any] = lambda i, right: right
) -> str:
    """A stream of so many questions, with its end; returns the setting that names it."""
    lines = [
        json.dumps({**row, "answer": answer(i, row["answer"])}) for i, row in enumerate(rows(count))
    ]
    path.write_text("\n".join(lines) + "\n" + END)
    return f"data.train={path}"


def train_on(folder: Path, overrides: Sequence[str], *, resume: bool = False) -> str:
    """Train in this process; returns what the screen shows."""
    screen = io.StringIO()
    settings = load_settings("tiny-stream", overrides=overrides)
    train(settings, RunFolder(folder), Display(Console(file=screen)), resume=resume)
    return screen.getvalue()


def kept(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one of the stream's files."""
    text = (folder / "stream" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    train_on(Path(sys.argv[1]), sys.argv[2:])
