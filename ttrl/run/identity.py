"""Identity of a run: a checkpoint is gone on with by the run that saved it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttrl.settings import Settings
from ttrl.types import UserError

if TYPE_CHECKING:  # a run that cannot go on is refused before torch is imported
    import torch

    from ttrl.learner.trained_model import TrainedModel

MAY_DIFFER = (
    "checkpoint.",
    "limits.",
    "tracking.",
    "report.",
    "stream.queue",
    "stream.patience_s",
    "stream.idle_s",
    "serve.",
    "policy.backend",
    "memory.tokens_per_batch",
    "memory.gradient_checkpointing",
    "memory.recompute_share",
    "memory.offload_optimizer",
    "memory.offload_during_rollout",
    "memory.liger_kernels",
    "rollout.batch_size",
    "rollout.tensor_parallel",
    "rollout.gpu_memory_share",
    "rollout.kv_cache_gb",
    "rollout.engines",
    "rollout.engine_gpus",
    "rollout.stuck_after_s",
    "answers.workers",
    "answers.memory_mb",
    "threads",
)
"""Settings, or sections of them, that say how the work is done and not which: of these only
rounding depends."""

EXTEND = ("epochs", "max_steps")
"""Settings that say where a run ends. It may go on to another end; from there on the learning rate
goes by that one."""

SAMPLED = 4096
"""Numbers of each weight, at least, that say which model it is."""

NOT_COMPUTED = {"architectures", "dtype", "transformers_version", "use_cache", "_name_or_path"}
"""Fields of a model's configuration that are not what it computes, or that the backend decides."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The settings, data and model that a run began with."""

    settings: Settings
    estimator: str
    """Its name, also where it is an object that was given to `ttrl.train`."""
    replayed: bool
    """Whether the run trains on recorded answers."""
    questions: str
    """Digest of the questions, see `ttrl.data.sources.QuestionSource.digest`."""
    model: dict[str, str]
    """Digests of the model, see `model_digests`."""
    sizes: dict[str, int]
    """Numbers of elements of what is trained, by name."""

    def as_json(self) -> dict[str, Any]:
        """Return the identity as JSON, for a checkpoint."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "estimator": self.estimator,
            "replayed": self.replayed,
            "questions": self.questions,
            "model": self.model,
            "sizes": self.sizes,
        }

    def refuse_other(self, saved: Mapping[str, Any], checkpoint: Path) -> None:
        """Raise a UserError that says what this run began with, and that of ``saved`` did not."""
        refuse_differences(
            Settings.model_validate(saved["settings"]),
            self.settings,
            f"{checkpoint} was saved by a run with other settings",
            "Remove that checkpoint, and an earlier one is used",
        )
        if saved["replayed"] != self.replayed:
            add = "give --replay as well" if saved["replayed"] else "leave --replay out"
            raise UserError(f"--resume: {add}, as when the run was started")
        then, now = policies_in(saved["sizes"]), policies_in(self.sizes)
        if then != now:
            raise UserError(
                f"--resume: rollout.workflow = {self.settings.rollout.workflow!r} has {now} agents "
                f"with a policy each, and had {then} when {checkpoint} was saved; put it back, or "
                "start a new run"
            )
        model = f"model.path = {self.settings.model.path!r}"
        for what, before, after in (
            ("the estimator", saved["estimator"], self.estimator),
            ("data.train", saved["questions"], self.questions),
            (f"the configuration of {model}", saved["model"]["config"], self.model["config"]),
            (f"one of the weights of {model}", saved["model"]["weights"], self.model["weights"]),
            (f"the set of parameters of {model}", saved["sizes"], self.sizes),
        ):
            if before != after:
                raise UserError(
                    f"--resume: {what} is not what it was when {checkpoint} was saved; put it "
                    "back, or start a new run"
                )


def policies_in(sizes: Mapping[str, int]) -> int:
    """Count the policies in an identity's sizes: the first one's keys name no agent."""
    named = {key.partition("/")[0] for key in sizes}
    return 1 + sum(name.startswith("agent_") for name in named)


def refuse_differences(before: Settings, now: Settings, what: str, advice: str) -> list[str]:
    """Refuse settings that differ and must not; return the others, as "KEY = NEW (was OLD)".

    Args:
        before: settings that the run once had.
        now: those that it would be continued with.
        what: what is wrong if they differ.
        advice: what to do then.

    Raises:
        UserError: if something differs that may not.
    """
    differ = _differences(before, now)
    # Nothing is sampled ahead of a checkpoint: then when they are taken decides what is sampled.
    fixed = "checkpoint.every" if now.rollout.overlap else None
    refused = [text for key, text in differ.items() if key == fixed or _decides(key)]
    if refused:
        free = ", ".join((*MAY_DIFFER, *EXTEND)).replace(".,", ".*,")
        raise UserError(
            f"--resume: {what}: {'; '.join(refused)}. {advice}. What may differ: {free}"
        )
    return list(differ.values())


def refuse_foreign(saved: Mapping[str, Any], run: Settings, checkpoint: Path) -> None:
    """Raise a UserError unless a run of these settings may have saved the checkpoint.

    Its model may be somewhere else by now, which its parameters are compared with anyhow.

    Args:
        saved: the identity in the checkpoint.
        run: the settings of the run in whose folder it lies.
        checkpoint: for the message.
    """
    differ = _differences(Settings.model_validate(saved["settings"]), run)
    others = [text for key, text in differ.items() if _decides(key) and key != "model.path"]
    if others:
        raise UserError(
            f"{checkpoint} was saved by another run than the one in whose folder it is, which has "
            f"{'; '.join(others)}: put it back where it came from, or config.toml as it was"
        )


def other_work(before: Settings, now: Settings) -> list[str]:
    """List what differs and is not only about how a run is made, as "KEY = NEW (was OLD)"."""
    differ = _differences(before, now)
    return [text for key, text in differ.items() if not key.startswith(MAY_DIFFER)]


def _differences(before: Settings, now: Settings) -> dict[str, str]:
    """Return what differs, as "KEY = NEW (was OLD)", by key."""
    then, here = before.flat(), now.flat()
    return {
        key: f"{key} = {here.get(key)!r} (was {then.get(key)!r})"
        for key in sorted(then.keys() | here.keys())
        if then.get(key) != here.get(key)
    }


def _decides(key: str) -> bool:
    """Say whether a setting decides what a run makes, apart from where it ends."""
    return key not in EXTEND and not key.startswith(MAY_DIFFER)


def run_digest(saved: Mapping[str, Any]) -> str:
    """Compute a digest of a saved identity: that of whatever goes on with this run, too."""
    settings = Settings.model_validate(saved["settings"]).flat()
    decides = {key: value for key, value in settings.items() if _decides(key)}
    text = json.dumps({**saved, "settings": decides}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_digests(policy: TrainedModel, dtype: torch.dtype) -> dict[str, str]:
    """Compute digests of configuration and weights of a policy that has not been trained yet.

    All ranks call this together.
    """
    text = policy.model.config.to_json_string(use_diff=True)
    config = json.loads(text, object_hook=lambda d: {k: d[k] for k in d.keys() - NOT_COMPUTED})
    return {
        "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "weights": weights_digest(policy.named_weights(), dtype),
    }


def weights_digest(named: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> str:
    """Compute a digest that tells models apart.

    Of each weight, its name, its shape and so many numbers, evenly spread, that neither a large
    model costs much nor one that was trained, merged or quantized meanwhile looks the same. They
    are compared in ``model.dtype``, which is all that one of the backends keeps of them.
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].to("cpu", dtype).float()
        digest.update(repr((name, tuple(tensor.shape))).encode())
        digest.update((some + 0.0).numpy().tobytes())  # -0.0, which merging adapters may lose
    return digest.hexdigest()
