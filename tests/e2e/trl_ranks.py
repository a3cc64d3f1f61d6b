"""TRL's GRPOTrainer on the ranks of torchrun: trl_ranks.py FOLDER; or alone.

Each rank leaves in FOLDER what its reward functions were given and have returned, and rank 0 the
logs of a run with TRL's loss and of one with ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from ttrl.data.arithmetic import question_rows
from ttrl.integrations.trl import estimator_reward, majority_reward
from ttrl.integrations.trl_loss import FusedLossMixin
from ttrl.models.pretrained import TINY_BASE

VOTES = 4
ANSWERS = 6 if "RANK" in os.environ else 8
"""Of each rank: a group and a half of two ranks, two groups of one process."""
CALLS: list[dict[str, Any]] = []


class FusedTrainer(FusedLossMixin, GRPOTrainer):
    """TRL's trainer with our loss."""


def noted(reward: Any) -> Any:
    """The reward function, and a note of each of its calls."""

    def called(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        paid = reward(prompts=prompts, completions=completions, **columns)
        step = columns["trainer_state"].global_step + 1
        call = {"prompts": prompts, "completions": completions, "paid": paid, "step": step}
        CALLS.append({"name": reward.__name__, **call})
        return paid

    called.__name__ = reward.__name__
    return called


def train(kind: type, folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train two steps; return the logs and the weights."""
    trainer = kind(
        AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype="float32"),
        [
            noted(majority_reward(VOTES)),
            noted(estimator_reward("evol", VOTES)),
            noted(estimator_reward("random", VOTES, seed=5)),
        ],
        GRPOConfig(
            output_dir=str(folder / "trl"),
            num_generations=VOTES,
            per_device_train_batch_size=ANSWERS,
            max_completion_length=80,
            max_steps=2,
            learning_rate=1e-3,
            num_iterations=2,
            beta=0.01,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            ddp_find_unused_parameters=False if "RANK" in os.environ else None,
        ),
        Dataset.from_list([{"prompt": row["prompt"]} for row in question_rows("train")[:12]]),
        processing_class=AutoTokenizer.from_pretrained(TINY_BASE),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return logs, trainer.model.state_dict()


def main() -> None:
    """Train twice."""
    folder = Path(sys.argv[1])
    ours, weights = train(FusedTrainer, folder)
    theirs, their_weights = train(GRPOTrainer, folder)
    rank = int(os.environ.get("RANK", "0"))
    start = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype="float32").state_dict()
    apart = sum((weights[n] - their_weights[n]).norm().item() for n in weights)
    moved = sum((weights[n] - start[n]).norm().item() for n in weights)
    found = {"calls": CALLS, "ours": ours, "theirs": theirs, "apart": apart, "moved": moved}
    (folder / f"rank_{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
