"""What TRL and verl call our settings, for whoever types their names (docs/coming_from.md)."""

from __future__ import annotations

OURS = {
    "actor.optim.lr": "optimizer.learning_rate",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adv_estimator": "reward.advantages",
    "beta": "loss.kl_coef",
    "clip_grad": "optimizer.grad_clip",
    "clip_ratio_c": "loss.dual_clip",
    "clip_ratio_high": "loss.clip_high",
    "clip_ratio_low": "loss.clip_low",
    "delta": "loss.dual_clip",
    "entropy_coeff": "loss.entropy_coef",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "eval_steps": "evaluation.every",
    "filter_groups": "rollout.resample_rounds",
    "gradient_accumulation_steps": "policy.sequences_per_update",
    "importance_sampling_level": "loss.ratio_level",
    "kl_loss_coef": "loss.kl_coef",
    "kl_loss_type": "loss.kl_estimator",
    "lora_alpha": "lora.alpha",
    "lora_rank": "lora.rank",
    "loss_agg_mode": "loss.aggregation",
    "loss_mode": "loss.policy",
    "loss_type": "loss.aggregation",
    "lr": "optimizer.learning_rate",
    "lr_scheduler_kwargs": "optimizer.final_lr_share",
    "lr_warmup_steps_ratio": "optimizer.warmup_share",
    "mask_truncated_completions": "policy.mask_truncated",
    "max_completion_length": "rollout.max_new_tokens",
    "max_grad_norm": "optimizer.grad_clip",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_response_length": "rollout.max_new_tokens",
    "min_lr_ratio": "optimizer.final_lr_share",
    "num_generations": "rollout.votes",
    "num_iterations": "policy.epochs_per_rollout",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "policy.sequences_per_update",
    "ppo_epochs": "policy.epochs_per_rollout",
    "ppo_max_token_len_per_gpu": "memory.tokens_per_batch",
    "ppo_mini_batch_size": "policy.sequences_per_update",
    "reward_funcs": "reward.extra",
    "reward_weights": "reward.extra",
    "rollout.n": "rollout.votes",
    "save_freq": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "scale_rewards": "reward.advantages",
    "target_modules": "lora.targets",
    "tensor_model_parallel_size": "rollout.tensor_parallel",
    "test_freq": "evaluation.every",
    "total_epochs": "epochs",
    "total_training_steps": "max_steps",
    "train_batch_size": "rollout.questions_per_step",
    "use_liger_kernel": "memory.liger_kernels",
    "use_vllm": "rollout.engine",
    "vllm_gpu_memory_utilization": "rollout.gpu_memory_share",
    "vllm_mode": "rollout.placement",
    "vllm_tensor_parallel_size": "rollout.tensor_parallel",
    "warmup_ratio": "optimizer.warmup_share",
}
"""Their name, as it ends, and the setting of ours that means the same or is next to it."""

NOT_SETTINGS = {
    "log_completions": "every answer is in the run's rollouts/; see `ttrl show RUN`",
    "lr_scheduler": "the schedule is a cosine: optimizer.warmup_share, optimizer.final_lr_share",
    "lr_scheduler_type": "the schedule is a cosine: optimizer.warmup_share, "
    "optimizer.final_lr_share",
    "output_dir": "the run's folder is the option --run-dir",
    "push_to_hub": "the run's model/ is an ordinary folder: `hf upload NAME RUN/model`",
    "report_to": "all figures are in the run's metrics.jsonl, and `ttrl show RUN` draws them",
    "resume_from_checkpoint": "`ttrl train --resume RUN` goes on",
    "run_name": "a run is named by name, or by the option --run-dir",
}
"""What has no setting here, and what does it."""


def theirs(key: str) -> str:
    """Say what is meant by a name of TRL's or verl's; empty for any other.

    ``policy.beta`` and ``actor_rollout_ref.actor.kl_loss_coef`` are known by how they end.
    """
    parts = key.split(".")
    for start in range(len(parts)):
        name = ".".join(parts[start:])
        if name in OURS:
            return f" (did you mean {OURS[name]!r}? see docs/coming_from.md)"
        if name in NOT_SETTINGS:
            return f" ({NOT_SETTINGS[name]})"
    return ""
