"""The trained models of a run, under the backend that its settings or its launch name."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ttrl.learner.local import LocalModel
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.lora import another_of_its_base
from ttrl.models.packed_model import load_policy_model
from ttrl.models.value_head import ValueHead
from ttrl.settings import LossSettings, OptimizerSettings, RewardSettings, Settings
from ttrl.settings.backend import backend_of
from ttrl.system.launch import launched
from ttrl.system.ranks import Ranks


def make_trained_model(settings: Settings, ranks: Ranks) -> TrainedModel:
    """Load the settings' model, to be trained in this process or on all ``ranks``."""
    if backend_of(settings, launched=launched()) == "zero3":
        from ttrl.learner.zero3 import Zero3Model

        return Zero3Model.load(settings, ranks)
    return LocalModel(_load(settings), settings)


def make_second_model(
    policy: TrainedModel,
    optimizer: OptimizerSettings,
    *,
    value_head: bool = False,
    epochs: int = 1,
) -> TrainedModel:
    """Make another trained model, which starts where ``policy`` does.

    With adapters it has its own, in one process beside the same frozen weights.

    Args:
        policy: before its first update.
        optimizer: of the second model.
        value_head: give it one in the place of its output layer.
        epochs: how often it is trained on each of its samples.
    """
    settings = policy.settings.model_copy(
        update={
            "optimizer": optimizer,
            # No reference is kept for it: where it needs one, that is the policy's.
            "loss": LossSettings(),
            "reward": RewardSettings(),
            "policy": policy.settings.policy.model_copy(update={"epochs_per_rollout": epochs}),
        }
    )
    if not isinstance(policy, LocalModel):
        from ttrl.learner.zero3 import Zero3Model

        return Zero3Model.load(settings, policy.ranks, value_head=value_head)
    shares = settings.lora.rank is not None
    model = another_of_its_base(policy.model) if shares else _load(settings)
    if value_head:
        ValueHead.replace(model)
    return LocalModel(model, settings)


def _load(settings: Settings) -> PreTrainedModel:
    own = getattr(torch, settings.model.dtype)
    dtype = torch.float32 if settings.lora.rank is None else own
    liger, longest = settings.memory.liger_kernels, settings.longest
    return load_policy_model(settings.model, dtype, longest=longest, liger=liger)
