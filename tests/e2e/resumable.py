"""A short run that can be killed and gone on with, of an estimator that draws random numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from small_run import SMALL

from ttrl.data.arithmetic import question_rows
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train

NOISY = '''
import random
import numpy
import torch
from ttrl.types import Estimate

class Noisy:
    """Agreement, and noise from the generators that the whole process shares."""

    def estimate(self, voted):
        noise = torch.rand(()).item() + numpy.random.rand() + random.random()
        rewards = [agrees + noise * (i % 3) for i, agrees in enumerate(voted.agrees_G)]
        return Estimate(vote=voted.vote, rewards_G=tuple(rewards), label=voted.label)
'''


def prepare(folder: Path) -> Path:
    """Eight questions and the estimator."""
    rows = question_rows("train")[:8]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "noisy.py").write_text(NOISY)
    return folder


def overrides_in(place: Path, *more: str) -> list[str]:
    """Four steps of one question, saved after every second one: no groups share a generator."""
    return [
        *SMALL,
        f"data.train={place}/questions.jsonl",
        f"reward.estimator={place}/noisy.py:Noisy",
        "data.held_out=none",
        "max_steps=4",
        "rollout.questions_per_step=1",
        "policy.sequences_per_update=3",
        "checkpoint.every=2",
        "loss.entropy_target=9",  # more than there is: its bonus has a state that always moves
        *more,
    ]


def train_here(folder: Path, overrides: Sequence[str], *, resume: bool = False) -> str:
    """Train in this process; returns what the screen shows."""
    screen = io.StringIO()
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    display = Display(Console(file=screen))
    train(settings, RunFolder(folder), display, resume=resume)
    return screen.getvalue()
