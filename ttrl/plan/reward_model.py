"""Bytes of a reward model that judges a run's answers, on the GPU of policy and engine."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import PreTrainedModel

from ttrl.models.pretrained import load_bare_outline
from ttrl.plan.memory import Job
from ttrl.reward_models import SHIPPED
from ttrl.reward_models.folder import Folder
from ttrl.settings import Settings
from ttrl.settings.plugins import is_plugin
from ttrl.types import UserError

HEADLESS = ("qwen-prm", "skywork-prm", "orm")
"""Kinds that are loaded without the model's own output layer."""
OF_ALL_LOGITS = ("likelihood", *SHIPPED)
"""Kinds that need the log-prob of each token of a solution."""


def judge_of(settings: Settings) -> str | None:
    """Name the reward model that a training run loads; None: it loads none that is known.

    What a function of the user's loads nobody knows.
    """
    name = settings.reward.options.get("verifier")
    if settings.reward.estimator != "verified" or not isinstance(name, str) or is_plugin(name):
        return None
    return name


def judge_outline(settings: Settings, config: Path | None = None) -> PreTrainedModel | None:
    """Load the reward model of a run without its weights; None if it loads none.

    Args:
        settings: the run's.
        config: the reward model's config.json, if it is elsewhere.

    Raises:
        UserError: if it cannot be read, or there is a ``config`` and no reward model.
    """
    name = judge_of(settings)
    if name is None:
        if config is not None:
            raise UserError(
                f"--reward-model-config {config}: this run loads no reward model that is known; "
                'expected reward.estimator = "verified" with one as reward.options.verifier'
            )
        return None
    if name in SHIPPED:
        model = Folder.shipped(name, settings).model
    else:
        model = Folder.of(name.partition(":")[2], settings, name).model
    if config is not None:
        model = model.model_copy(update={"path": str(config), "revision": None})
    try:
        return load_bare_outline(model)
    except UserError as error:
        hint = (
            "" if config else ". For a plan its config.json is enough: --reward-model-config FILE"
        )
        raise UserError(f"reward model {name!r}: {error}{hint}") from error


def weights(job: Job) -> dict[str, int]:
    """Count the bytes of its weights, in ``model.dtype``; each rank has all of them."""
    shape = job.judge
    if shape is None:
        return {}
    head = shape.head if _kind(job) in HEADLESS and not shape.tied else 0
    return {"reward model": _width(job) * (shape.parameters - head)}


def reading(job: Job) -> dict[str, int]:
    """Count the bytes of reading ``reward_model.batch_size`` of the longest solutions at once.

    A layer's MLP has three vectors of its width beside four of the stream; its attention four of
    the stream, of the queries and of the keys, and a mask of places by places, twice. Kinds that
    compute the log-prob of each token have its logits, in float32 twice more. One that writes has a
    cache, like the embedded engine's, and logits to sample from.
    """
    shape, own, w = job.judge, job.settings.reward_model, _width(job)
    if shape is None:
        return {}
    stream = 4 * w * shape.hidden
    mlp = stream + 3 * w * shape.intermediate + job.longest
    attention = stream + 4 * w * (shape.query + shape.key) + (1 + w) * job.longest
    logits = (w + 8) * shape.vocabulary if _kind(job) in OF_ALL_LOGITS else 0
    found = {"reading": own.batch_size * job.longest * max(mlp, attention, logits)}
    if _kind(job) == "generative":
        kept = 2 * (job.longest + own.analysis_tokens) * shape.kv_bytes_per_token()
        found["reward model's cache"] = own.batch_size * (kept + 3 * 4 * shape.vocabulary)
    return {name: math.ceil(size) for name, size in found.items()}


def _kind(job: Job) -> str:
    return (judge_of(job.settings) or "").partition(":")[0]


def _width(job: Job) -> int:
    return 2 if job.settings.model.dtype == "bfloat16" else 4
