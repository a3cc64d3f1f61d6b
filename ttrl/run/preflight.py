"""Checks before a model is loaded, of what would fail only after that."""

from __future__ import annotations

from pathlib import Path

import torch

from ttrl.models.lora import require_peft
from ttrl.report.trackers import refuse_absent_trackers
from ttrl.rollout.engines.vllm_contract import require_vllm
from ttrl.settings import Settings
from ttrl.settings.backend import backend_of, refuse_for_local
from ttrl.system.gpus import refuse_unseen_gpus
from ttrl.system.launch import launched
from ttrl.system.ranks import Ranks
from ttrl.types import UserError


def refuse_impossible(settings: Settings, replay: Path | None, ranks: Ranks) -> None:
    """Raise a UserError for settings that this machine or this launch cannot follow."""
    refuse_unseen_gpus()
    refuse_absent_trackers(settings.tracking)
    shared = settings.rollout.tensor_parallel
    if ranks.count % shared:
        raise UserError(
            f"rollout.tensor_parallel = {shared} does not divide the {ranks.count} ranks of this "
            "run: start a multiple of it, one per GPU (--ranks)"
        )
    if settings.policy.backend == "zero3" and not launched():
        raise UserError(
            'policy.backend = "zero3" needs processes that a launcher has started: ttrl train, '
            "torchrun or deepspeed"
        )
    if backend_of(settings, launched=launched()) == "local":
        refuse_for_local(settings, ranks.count, "were started", "start one")
    else:
        from ttrl.learner.zero3 import require_deepspeed

        if settings.memory.offload_during_rollout and not torch.cuda.is_available():
            raise UserError(
                "memory.offload_during_rollout = true: expected a GPU, whose memory it is about; "
                "torch sees none here"
            )
        require_deepspeed()
    if settings.lora.rank is not None:
        require_peft()
    if replay is not None and settings.reward.labels == "teacher":
        raise UserError(
            '--replay: a teacher\'s answers are not recorded (reward.labels = "teacher")'
        )
    if replay is not None and settings.data.source == "stream":
        raise UserError(
            '--replay: data.source = "stream" asks what arrives, when it arrives: the answers of '
            "another run are to other questions. Go on with that run by --resume"
        )
    if replay is not None and settings.data.source == "self_posed":
        raise UserError(
            '--replay: data.source = "self_posed" asks what the policy has posed, of which '
            "rollouts/ keep the text alone. Go on with that run by --resume"
        )
    if replay is None and settings.rollout.engine == "vllm":
        require_vllm()
