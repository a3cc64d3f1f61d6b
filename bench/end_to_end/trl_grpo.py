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
from trl import GRPOConfig, GRPOTrainer
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
    tokenizer, optimizer = load_tokenizer(settings.model), settings.optimizer
    rows = [{"prompt": question.prompt} for question in questions(settings)]
    clock = Clock()
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_path(settings.model), dtype="float32"),
        majority_reward(VOTES, answers=settings.answers),
        GRPOConfig(
            output_dir=str(folder / "trl"),
            num_generations=VOTES,
            per_device_train_batch_size=QUESTIONS * VOTES,
            max_completion_length=settings.rollout.max_new_tokens,
            max_steps=steps,
            seed=seed,
            learning_rate=optimizer.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.grad_clip,
            loss_type="dapo",  # our aggregation of this recipe: a mean over tokens
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            save_strategy="no",
            report_to="none",
            logging_steps=steps,
            disable_tqdm=True,
            use_cpu=True,
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
