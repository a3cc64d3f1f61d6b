"""What is rehearsed: the same on the pretended GPU and on the CPU, so that numbers can be compared.

Each scenario gives facts, which can be JSON, and tensors, by name. Those of `ON_GPU_ONLY` have
nothing to be compared with.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pretended_cuda
import rules
import torch
import torch.distributed as dist
from credit_cases import local_steps
from planted import MIX_UPS, OTHERS, planted
from rich.console import Console
from safetensors.torch import load_file
from tiny_models import (
    figures_of,
    make_settings,
    near_samples,
    read_sample,
    saved,
    tiny_model,
    update,
)
from ttrl_kernels import rows

from ttrl.doctor import doctor, selftests
from ttrl.learner.backends import make_trained_model
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.packed_model import load_policy_model
from ttrl.report.display import Display
from ttrl.rollout.engines.shared_weights import SharedWeights
from ttrl.run.export import export
from ttrl.run.run_folder import RunFolder
from ttrl.settings import ModelSettings, Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks, join_ranks, leave_ranks
from ttrl.system.rng import make_repeatable
from ttrl.trainer import train
from ttrl.types import TrainSample, UserError

Tensors = dict[str, torch.Tensor]
Seen = tuple[dict[str, Any], Tensors]

RATE = 3e-4

PENALIZED = {"kl_coef": 0.1, "kl_estimator": "k3+", "kl_bias_correction": True}
MASKED = {"off_policy_mask": 0.1, "entropy_mask": 0.5, "tokens_per_batch": 40}

UPDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {"kl_coef": 0.2, "entropy_coef": 0.05}),
    "corrected": (
        "float32",
        {
            "old_logprobs": "policy",
            "sampler_correction": "truncate",
            "sampler_ratio_cap": 1.5,
            "sequences_per_update": 4,
            "tokens_per_batch": 40,
        },
    ),
    "masked": ("float32", {"loss_policy": "gmpo", **MASKED, **PENALIZED}),  # of whole sequences
    "autocast": (
        "bfloat16",
        {"kl_coef": 0.1, "gradient_checkpointing": True, "recompute_share": 0.5},
    ),
    "lora": ("bfloat16", {"lora_rank": 3, "lora_alpha": 6.0, "kl_coef": 0.3}),
    "window": ("float32", {"model": "window"}),  # kernels know no float32
}
"""By name, ``model.dtype`` and changed settings of an update in one process, or its model."""

INTERPRETED = ("float32", "autocast")
"""Those of them whose loss is computed by Triton's kernels, in its interpreter."""

RUN = (
    *("max_steps=2", "rollout.questions_per_step=1", "rollout.votes=3"),
    "rollout.max_new_tokens=6",
    "rollout.temperature=1.3",
    "policy.trained_samples=3",
    "policy.sequences_per_update=3",
    "loss.kl_coef=0.1",
    "evaluation.samples=1",
    "evaluation.top_p=0.9",
    *("data.train=TRAIN", "data.held_out=none"),
    "checkpoint.every=1",
    "guard.on_collapse=warn",
    "report.every_s=0",
    "threads=1",
)
"""Changes to the embedded task, for a run of two steps."""

QUESTIONS = [{"prompt": f"What is {a} + {3 * a}?", "answer": str(4 * a)} for a in range(2, 5)]


def prepare(folder: Path) -> None:
    """Models, samples and questions of all scenarios."""
    start = saved(tiny_model(), folder / "model")
    saved(tiny_model("mistral", sliding_window=8), folder / "window")
    every = near_samples(load_policy_model(start))
    samples = [asdict(every[i]) for i in (0, 1, 3, 4, 6, 9)]  # 23 tokens: each takes time
    (folder / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    rows = "\n".join(map(json.dumps, QUESTIONS))
    (folder / "questions.jsonl").write_text(rows, encoding="utf-8")


def samples_of(folder: Path) -> list[TrainSample]:
    """Those of `prepare`."""
    rows = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [read_sample(row) for row in rows]


def policy_of(
    folder: Path, dtype: str, ranks: Ranks | None = None, model: str = "model", **policy: Any
) -> TrainedModel:
    """In one process, or under DeepSpeed on ``ranks``."""
    settings = make_settings(
        model={"path": str(folder / model), "dtype": dtype},
        update={"grad_clip": 1e3, "backend": "zero3" if ranks else "local", **policy},
    )
    return make_trained_model(settings, ranks or Ranks())


def numbers(policy: TrainedModel, samples: list[TrainSample]) -> Seen:
    """Two rollouts' updates: their results, and what the policy then holds."""
    results = [r for _ in range(2) for r in update(policy, samples, RATE)]
    facts = [figures_of(r) for r in results]
    tensors = {f"shares/{name}": tensor for name, tensor in policy.shards().items()}
    tensors |= {f"pushed/{name}": tensor for name, tensor in weights(policy).items()}
    sample = samples[0]
    logprobs = policy.logprobs([sample])[0]
    return {"results": facts, "steps": policy.steps_taken, "logprobs": logprobs}, tensors


def weights(policy: TrainedModel) -> Tensors:
    """A copy on the CPU of all that is pushed into an engine."""
    return {name: t.detach().to("cpu", copy=True) for name, t in policy.named_weights()}


def use_rows(name: str) -> None:
    """From here on, the loss on a GPU is computed by these rows.

    Triton's interpreter takes 20 ms for each row, so it computes `INTERPRETED` only.
    """
    rows._PREFERENCES["cuda"] = (name,)
    rows.chosen_backend.cache_clear()


def updates(folder: Path) -> Seen:
    """All of `UPDATES`."""
    facts: dict[str, Any] = {}
    tensors: Tensors = {}
    for name, (dtype, changes) in UPDATES.items():
        use_rows("triton" if name in INTERPRETED else "torch")
        policy = policy_of(folder, dtype, **changes)
        facts[name], found = numbers(policy, samples_of(folder))
        facts[name] |= {"device": str(policy.model.device), "kernels": policy.kernels}
        tensors |= {f"{name}/{key}": tensor for key, tensor in found.items()}
    use_rows("torch")
    return facts, tensors


def credit(folder: Path) -> Seen:
    """Steps of PPO, whose critic is a second model with a value head, and of PRIME."""
    return local_steps(folder / "model", samples_of(folder)), {}


def going_on(folder: Path) -> Seen:
    """Shares go to a new policy, and both take the same next step."""
    first, second = (policy_of(folder, "float32", kl_coef=0.1) for _ in range(2))
    samples = samples_of(folder)
    update(first, samples, RATE)
    second.load_state(first.state())
    second.load_shards(first.shards())
    for policy in (first, second):
        update(policy, samples, RATE)
    ours, theirs = first.shards(), second.shards()
    return {"equal": all(torch.equal(ours[name], theirs[name]) for name in ours)}, {}


def pushed(folder: Path) -> Seen:
    """Weights go into the memory that engine processes share."""
    policy = policy_of(folder, "float32")
    shapes = {name: p.shape for name, p in policy.model.named_parameters()}
    shared = SharedWeights(shapes, "float32")
    shared.write(policy.named_weights())
    whole = weights(policy)
    equal = all(torch.equal(shared._tensors[name], whole[name]) for name in whole)
    first = next(iter(shared._tensors.values())).data_ptr()
    pinned = [first in pretended_cuda.pinned]
    shared.close()
    pinned.append(first in pretended_cuda.pinned)
    return {"equal": equal, "pinned": pinned}, {}


def run(folder: Path) -> Seen:
    """A run, the same again after an interruption, and the export of its last checkpoint."""
    work = folder / ("gpu" if torch.cuda.is_available() else "cpu")
    overrides = [c.replace("TRAIN", str(folder / "questions.jsonl")) for c in RUN]
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    screen = io.StringIO()
    train(settings, RunFolder(work / "run"), Display(Console(file=screen, width=200)))
    shutil.copytree(work / "run", work / "resumed")
    (work / "resumed" / "summary.json").unlink()
    shutil.rmtree(work / "resumed" / "checkpoints" / "step_00002")
    train(settings, RunFolder(work / "resumed"), Display(Console(quiet=True)), resume=True)
    export(work / "run", work / "exported", "newest", None)
    saved_as = {k: load_file(work / k / "model.safetensors") for k in ("run/model", "exported")}
    again = load_file(work / "resumed" / "model" / "model.safetensors")
    lines = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = [
        json.loads(line)
        for line in (work / "run/rollouts/step_00001.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    facts = {
        "metrics": [found for found in map(json.loads, lines) if found["step"] > 0],
        "texts": [[c["text"] for c in row["completions"]] for row in first],
        "resumed": all(torch.equal(t, again[n]) for n, t in saved_as["run/model"].items()),
        "exported": all(torch.equal(t, saved_as["exported"][n]) for n, t in again.items()),
        "screen": screen.getvalue(),
    }
    return facts, {}


def examined(folder: Path) -> Seen:
    """``ttrl doctor``."""
    screen = io.StringIO()
    use_rows("triton")
    selftests.SELF_TESTS.pop("vLLM sleeps and wakes")  # it has no part that is pretended
    healthy = doctor.report(Console(file=screen, width=200))
    return {"healthy": healthy, "screen": screen.getvalue()}, {}


def zero3(folder: Path) -> Seen:
    """The policy under DeepSpeed, on one rank: updates, shares and their way into another."""
    gc.freeze()  # DeepSpeed looks for garbage often: not in all that has been imported
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ranks = join_ranks()
    facts: dict[str, Any] = {"backend": dist.get_backend_config()}
    tensors: Tensors = {}
    samples = samples_of(folder)
    for dtype, changes in (("float32", {"kl_coef": 0.2}), ("bfloat16", {"kl_coef": 0.1})):
        first = policy_of(folder, dtype, ranks, **changes)
        facts[dtype], found = numbers(first, samples)
        facts[dtype]["device"] = str(first.model.device)
        tensors |= {f"{dtype}/{key}": tensor for key, tensor in found.items()}
    second = policy_of(folder, dtype, ranks, **changes)
    second.load_state(first.state())
    second.load_shards(first.shards())
    for policy in (first, second):
        update(policy, samples, RATE)
    ours, theirs = first.shards(), second.shards()
    facts["equal"] = all(torch.equal(ours[name], theirs[name]) for name in ours)
    if torch.cuda.is_available():
        facts["offloaded"] = offloaded(folder, ranks)
    leave_ranks()
    for name in alone:
        del os.environ[name]
    return facts, tensors


def offloaded(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Whether what leaves the GPU between updates, or for good, changes them."""
    options = ({}, {"offload_during_rollout": True}, {"offload_optimizer": True})
    policies = [policy_of(folder, "bfloat16", ranks, **option) for option in options]
    for _ in range(2):
        for policy in policies:
            update(policy, samples_of(folder), RATE)
            policy.offload()
            pushed = weights(policy)
            policy.reload()
    assert pushed.keys() == weights(policies[0]).keys()
    stays, leaves, elsewhere = (policy.shards() for policy in policies)
    return {
        "during rollouts": all(torch.equal(t, leaves[n]) for n, t in stays.items()),
        "for good": all(torch.allclose(t, elsewhere[n], atol=1e-5) for n, t in stays.items()),
    }


def attention_kernels(folder: Path) -> Seen:
    """One update through each kernel for packed sequences, and what it was asked for."""
    import varlen

    facts: dict[str, Any] = {}
    tensors: Tensors = {}
    for name, options in {
        "torch 2.13": {},
        "torch 2.11": {"torch_own": varlen.torch_2_11},
        "flash-attn": {"flash": folder / "packages"},
    }.items():
        varlen.put_in(**options)
        varlen.seen = varlen.Seen()
        policy = policy_of(folder, "bfloat16")
        results = update(policy, samples_of(folder), RATE)
        facts[name] = asdict(varlen.seen) | {"loss": results[0].loss}
        tensors |= {f"{name}/{key}": tensor for key, tensor in weights(policy).items()}
    varlen.put_in()
    varlen.seen = varlen.Seen()
    update(policy_of(folder, "bfloat16", model="window"), samples_of(folder), RATE)
    facts["window"] = asdict(varlen.seen)
    return facts, tensors


def without_accelerate(folder: Path) -> Seen:
    """Loading where transformers finds no accelerate, which it asks for on a GPU."""
    import transformers.integrations.accelerate as integration

    found = integration.is_accelerate_available
    integration.is_accelerate_available = lambda *_, **__: False
    try:
        load_policy_model(ModelSettings(path=str(folder / "model")))
        return {"refused": ""}, {}
    except UserError as error:
        return {"refused": str(error)}, {}
    finally:
        integration.is_accelerate_available = found


def too_many_ranks(folder: Path) -> Seen:
    """A second process on a machine with one GPU."""
    os.environ |= {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    try:
        join_ranks()
        return {"refused": ""}, {}
    except UserError as error:
        return {"refused": str(error)}, {}
    finally:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            del os.environ[name]


def mixed_up(folder: Path) -> Seen:
    """Updates by code in which a tensor stays on the wrong device."""
    facts: dict[str, Any] = {}
    for name, mix_up in MIX_UPS.items():
        policy = policy_of(folder, "bfloat16", old_logprobs="policy", sequences_per_update=4)
        with planted(*mix_up):
            try:
                update(policy, samples_of(folder), RATE)
                facts[name] = "nothing"
            except RuntimeError as error:
                facts[name] = str(error)
    return facts, {}


def of_old(folder: Path) -> Seen:
    """Updates by code that was wrong for a GPU once (see `planted.OTHERS`)."""
    import varlen

    facts: dict[str, Any] = {}
    for name, mistake in OTHERS.items():
        varlen.put_in(varlen.torch_2_11)
        varlen.seen = varlen.Seen()
        try:
            with planted(*mistake):
                update(policy_of(folder, "bfloat16"), samples_of(folder), RATE)
            facts[name] = asdict(varlen.seen)
        except (RuntimeError, TypeError) as error:
            facts[name] = {"refused": str(error)}
    varlen.put_in()
    return facts, {}


BOTH: dict[str, Callable[[Path], Seen]] = {
    "updates": updates,
    "credit": credit,
    "going_on": going_on,
    "pushed": pushed,
    "run": run,
    "zero3": zero3,
}
ON_GPU_ONLY: dict[str, Callable[[Path], Seen]] = {
    "attention_kernels": attention_kernels,
    "without_accelerate": without_accelerate,
    "too_many_ranks": too_many_ranks,
    "mixed_up": mixed_up,
    "of_old": of_old,
    "rules": rules.seen,
    "examined": examined,
}


def set_up() -> None:
    """As a run does before it loads anything."""
    settings: Settings = make_settings()
    make_repeatable(1, settings.seed)
