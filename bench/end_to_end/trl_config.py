"""What TRL's GRPOTrainer is told, so that it does the same as a recipe of ours."""

from __future__ import annotations

from typing import Any

from trl import GRPOConfig

from ttrl.settings import Settings


def config(settings: Settings, output_dir: str, **own: Any) -> GRPOConfig:
    """Make TRL's settings of a recipe's, with ``own`` ones: sizes of batches, and where it ends."""
    rollout, optimizer = settings.rollout, settings.optimizer
    return GRPOConfig(
        output_dir=output_dir,
        num_generations=rollout.votes,
        max_completion_length=rollout.max_new_tokens,
        temperature=rollout.temperature,
        seed=settings.seed,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.grad_clip,
        loss_type="dapo",  # the aggregation of these recipes: a mean over tokens
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **own,
    )
