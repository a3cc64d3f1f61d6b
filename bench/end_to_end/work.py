"""The work that every trainer does here: the same model, questions, samples and updates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ttrl.data.questions import load_questions
from ttrl.models.pretrained import load_tokenizer
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import Question

QUESTIONS = 16
"""Questions of a step."""
TEMPLATE = "\nAnswer:\n"
"""What the embedded model's chat template puts behind a question."""
VOTES = 32
"""Answers to each, all of them trained on, in one update."""


def settings_of(folder: Path, steps: int, seed: int, overrides: Sequence[str] = ()) -> Settings:
    """The embedded task's questions of so many steps, without answers, at one learning rate."""
    path = folder / "questions.jsonl"
    chosen = questions()[: steps * QUESTIONS]
    if len(chosen) < steps * QUESTIONS:
        raise SystemExit(f"{steps} steps: expected at most {len(chosen) // QUESTIONS}, one pass")
    asked = [q.prompt.removesuffix(TEMPLATE) for q in chosen]  # which is put there again
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    return load_settings(
        "tiny-arithmetic",
        overrides=[
            f"data.train={path}",
            "data.held_out=none",
            "epochs=1",
            f"seed={seed}",
            f"rollout.questions_per_step={QUESTIONS}",
            f"rollout.votes={VOTES}",
            f"policy.trained_samples={VOTES}",
            f"policy.sequences_per_update={QUESTIONS * VOTES}",
            "optimizer.warmup_share=0",
            "optimizer.final_lr_share=1",
            "report.every_s=0",
            *overrides,
        ],
    )


def questions(settings: Settings | None = None) -> tuple[Question, ...]:
    """The questions of settings, in their order; by default all of the embedded task."""
    settings = settings or load_settings("tiny-arithmetic")
    loaded = load_questions(settings.data.train, settings.data, load_tokenizer(settings.model))
    return tuple(loaded.questions)
