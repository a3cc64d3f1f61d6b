"""The half hour after `check.py`: kernels, updates, ZeRO-3, the task, the plan's constants."""

from __future__ import annotations

import sys

from check import ENVIRONMENT, TTRL, kernels, task
from parts import OUTPUT, Part, main


def update(name: str, what: str, limit_s: int, *options: str, needs: tuple[str, ...] = ()) -> Part:
    """A part that times an update of a real model's shape."""
    arguments = ("bench/update_step.py", OUTPUT, *options)
    return Part(name, what, limit_s, arguments, needs=(*needs, *TTRL))


PARTS = (
    ENVIRONMENT,
    kernels("kernels", "the loss against the floor and every peer, at three heads", 400, "gpu"),
    kernels(
        "kernels_growth", "memory as tokens and vocabulary grow; empty rows", 120, "gpu-growth"
    ),
    update("update_0.5b", "an update at 0.5B, Liger off and on", 120, "--shape=qwen2.5-0.5b"),
    update("update_1.5b", "an update at 1.5B, Liger off and on", 150, "--shape=qwen2.5-1.5b"),
    update(
        "update_7b_lora",
        "an update at 7B with LoRA, Liger off and on; needs a GPU of 70 GiB",
        250,
        "--shape=qwen2.5-7b",
        "--lora-rank=64",
        "--least-gib=70",
        needs=("peft",),
    ),
    update(
        "update_zero3",
        "an update at 1.5B under ZeRO-3 with one rank",
        120,
        "--shape=qwen2.5-1.5b",
        "--backend=zero3",
        "--without-liger",
        needs=("deepspeed",),
    ),
    task("task_local", "the embedded task in one process", 180, "--steps=8"),
    task(
        "task_zero3",
        "the embedded task under ZeRO-3 with one rank",
        180,
        "--steps=8",
        "--backend=zero3",
    ),
    Part(
        "constants",
        "what the plan assumes of a machine, beside what was measured",
        20,
        ("bench/gpu/constants.py", OUTPUT),
        dry=(),
        needs=TTRL,
    ),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, PARTS))
