"""The trained model of a run, under the backend that its settings or its launch name."""

from __future__ import annotations

import torch

from ttrl.learner.local import LocalModel
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.packed_model import load_policy_model
from ttrl.settings import Settings
from ttrl.settings.backend import backend_of
from ttrl.system.launch import launched
from ttrl.system.ranks import Ranks


def make_trained_model(settings: Settings, ranks: Ranks) -> TrainedModel:
    """Load the settings' model, to be trained in this process or on all ``ranks``."""
    if backend_of(settings, launched=launched()) == "zero3":
        from ttrl.learner.zero3 import Zero3Model

        return Zero3Model.load(settings, ranks)
    own = getattr(torch, settings.model.dtype)
    dtype = torch.float32 if settings.lora.rank is None else own
    liger, longest = settings.memory.liger_kernels, settings.longest
    model = load_policy_model(settings.model, dtype, longest=longest, liger=liger)
    return LocalModel(model, settings)
