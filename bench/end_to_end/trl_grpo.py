"""TRL's GRPOTrainer doing the work, with our vote as its reward; prints seconds per step as JSON.

python bench/end_to_end/trl_grpo.py FOLDER STEPS SEED
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer
from trl_config import config
from work import QUESTIONS, VOTES, questions, settings_of

from ttrl.integrations.trl import majority_reward
from ttrl.models.pretrained import load_tokenizer, model_path


class Clock(TrainerCallback):
    """The times at which steps end."""

    def __init__(self) -> None:
        """Start without any."""
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train, and leave the model in FOLDER/model."""
    folder, steps, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
    settings = settings_of(folder, steps, seed)
    tokenizer = load_tokenizer(settings.model)
    rows = [{"prompt": question.prompt} for question in questions(settings)]
    clock = Clock()
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_path(settings.model), dtype="float32"),
        majority_reward(VOTES, answers=settings.answers),
        config(
            settings,
            str(folder / "trl"),
            per_device_train_batch_size=QUESTIONS * VOTES,
            max_steps=steps,
            shuffle_dataset=False,
            logging_steps=steps,
        ),
        Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(str(folder / "model"))
    ends = clock.ends
    print(
        json.dumps(
            {
                "step_s": [round(b - a, 4) for a, b in pairwise(ends)],
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
