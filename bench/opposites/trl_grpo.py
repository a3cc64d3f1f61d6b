"""TRL's GRPOTrainer on the same questions, for so many seconds; prints what it did as JSON.

python bench/opposites/trl_grpo.py RECIPE MODEL TRAIN FOLDER SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOTrainer
from trl_config import config

from ttrl.integrations.trl import majority_reward
from ttrl.settings.recipe import load_settings

SAMPLES_PER_BATCH = 32
"""As many as fit into the memory of a laptop; an update has eight such batches."""


class Deadline(TrainerCallback):
    """Ends the training with the first step that is over after so many seconds."""

    def __init__(self, seconds: float) -> None:
        """Take the time from the beginning of the training."""
        self.seconds, self.begun, self.steps, self.ended = seconds, 0.0, 0, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.begun = time.perf_counter()

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        """Count the step, and say whether it was the last."""
        self.steps, self.ended = self.steps + 1, time.perf_counter() - self.begun
        control.should_training_stop = self.ended >= self.seconds


def main() -> None:
    """Train, and leave the model in FOLDER."""
    recipe, model, train, folder, seconds = sys.argv[1:]
    settings = load_settings(recipe, overrides=[f"data.train={train}", f"model.path={model}"])
    rollout = settings.rollout
    tokenizer = AutoTokenizer.from_pretrained(model)
    # Its way to end an answer with the line, as ours does.
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(newline)
    deadline = Deadline(float(seconds))
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        majority_reward(rollout.votes, answers=settings.answers),
        config(
            settings,
            f"{folder}/trl",
            per_device_train_batch_size=SAMPLES_PER_BATCH,
            gradient_accumulation_steps=rollout.questions_per_step
            * rollout.votes
            // SAMPLES_PER_BATCH,
            num_train_epochs=settings.epochs,
        ),
        load_dataset("json", data_files=train, split="train").select_columns("prompt"),
        processing_class=tokenizer,
        callbacks=[deadline],
    )
    trainer.train()
    trainer.model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    print(json.dumps({"steps": deadline.steps, "training_s": deadline.ended}))


if __name__ == "__main__":
    main()
