"""What the ranks of one launch compute, written down: starting them takes most of the time.

torchrun --nproc_per_node=N zero3_facts.py FOLDER OUTPUT

OUTPUT.json holds facts, OUTPUT.safetensors tensors as CASE/KIND/PARAMETER.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tiny_models import TEMPERATURE, answer_of, figures_of, prompt_of, update
from zero3_cases import (
    OTHERS,
    RATES,
    all_updates,
    away_cases,
    case_model,
    case_samples,
    case_settings,
    cases_of,
    other_order,
    read_samples,
)

from ttrl.learner.partition import load_partitioned
from ttrl.learner.trained_model import KINDS, needs_reference
from ttrl.learner.zero3 import Zero3Model, _config
from ttrl.models.packing import pack
from ttrl.models.pretrained import load_model, load_outline
from ttrl.rewards.labels import Teacher
from ttrl.settings import ModelSettings, Settings
from ttrl.system.ranks import Ranks, join_ranks, leave_ranks
from ttrl.types import TrainSample, UserError

Tensors = dict[str, torch.Tensor]


def main(folder: Path, output: str) -> None:
    gc.freeze()  # DeepSpeed looks for garbage often: not in all that has been imported
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ranks = join_ranks()
    samples = read_samples(folder)
    four = samples[:4]  # one optimizer step
    facts: dict[str, Any] = {}
    tensors: Tensors = {}
    for case in cases_of(ranks.count):
        policy = zero3_policy(case, folder, ranks)
        chosen = case_samples(case, samples)
        if case == "other-order":
            chosen = other_order(chosen)
        results = all_updates(case, policy, chosen)
        facts[case] = {
            "results": [figures_of(r) for r in results],
            "steps_taken": policy.steps_taken,
            "digests": ranks.gather(digest(dict(policy.named_weights()))),
        }
        for kind, found in whole(policy).items():
            tensors |= {f"{case}/{kind}/{name}": tensor for name, tensor in found.items()}
    for case in ("kl", "offload-optimizer"):
        facts[f"round_trip/{case}"] = round_trip(case, folder, ranks, four)
    facts["loading"] = {name: loading(name, folder, ranks) for name in ("tied", "untied", *OTHERS)}
    facts["refused"] = {name: refused(name, folder, ranks) for name in ("lacking", "gemma2")}
    facts["handed_over"] = handed_over(zero3_policy("token_mean", folder, ranks))
    for case in away_cases(ranks.count):
        facts[f"away/{case}"] = away(case, folder, ranks, four)
    policy, clean = zero3_policies(2, "token_mean", folder, ranks)
    facts["documents"] = documents(clean, samples)
    for p in (policy, clean):
        update(p, four, RATES[0])
    case = "lora" if "lora" in away_cases(ranks.count) else "token_mean"
    facts["teacher"] = ranks.gather(teacher(zero3_policy(case, folder, ranks), four))
    facts["gradients"] = ranks.gather(gradients(policy))
    facts["not_finite"] = {
        name: not_finite(name, policy, clean, four) for name in ("loss", "gradient", "sampler")
    }
    if ranks.is_main:
        Path(f"{output}.json").write_text(json.dumps(facts), encoding="utf-8")
        save_file(tensors, f"{output}.safetensors")
    leave_ranks()


class Loaded(NamedTuple):
    """A policy that can be had again as it was loaded: loading takes as long as an update."""

    policy: Zero3Model
    begun: Tensors

    def as_loaded(self, settings: Settings) -> Zero3Model:
        """The policy under settings that differ in no `reasons_to_load`."""
        self.policy.settings = settings
        self.policy.load_shards(self.begun)
        self.policy._adam.state.clear()
        return self.policy


loaded: dict[tuple[Any, ...], list[Loaded]] = {}
"""All policies that there are, by their `reasons_to_load`."""


def reasons_to_load(settings: Settings) -> tuple[Any, ...]:
    """What a policy cannot be used with another value of."""
    memory = settings.memory
    return (
        settings.model,
        settings.lora,
        settings.optimizer.grad_clip,
        needs_reference(settings),
        memory.gradient_checkpointing,
        memory.offload_optimizer,
    )


def zero3_policies(count: int, case: str, folder: Path, ranks: Ranks) -> list[Zero3Model]:
    """So many policies at the start of a case."""
    settings = case_settings(case)
    path = case_model(case, folder).path
    model = settings.model.model_copy(update={"path": path})
    settings = settings.model_copy(update={"model": model})
    alike = loaded.setdefault(reasons_to_load(settings), [])
    while len(alike) < count:
        policy = Zero3Model.load(settings, ranks)
        alike.append(Loaded(policy, policy.shards(("weights",))))
        gc.freeze()  # it stays, too
    return [one.as_loaded(settings) for one in alike[:count]]


def zero3_policy(case: str, folder: Path, ranks: Ranks) -> Zero3Model:
    (policy,) = zero3_policies(1, case, folder, ranks)
    return policy


def whole(policy: Zero3Model) -> dict[str, Tensors]:
    """By kind and parameter, what the shares of all ranks are together; and what is pushed."""
    found: dict[str, Tensors] = {kind: {} for kind in KINDS}
    found["pushed"] = {n: t.detach().clone() for n, t in policy.named_weights()}
    parts = policy.ranks.gather(policy.shards())
    for key in parts[0]:
        kind, _, name = key.partition("/")
        shape = policy.model.get_parameter(name).ds_shape
        flat = torch.cat([part[key] for part in parts])
        found[kind][name] = flat[: shape.numel()].view(shape).clone()
        assert not flat[shape.numel() :].any(), f"{key}: padding that is not zero"
    return found


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Names, shapes and bits."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {list(tensor.shape)}".encode())
        sha.update(tensor.detach().float().numpy().tobytes())
    return sha.hexdigest()


def everything(policy: Zero3Model) -> str:
    """The digest of this rank's shares, and of the weights that are pushed."""
    return digest(policy.shards()) + digest(dict(policy.named_weights()))


def round_trip(case: str, folder: Path, ranks: Ranks, samples: list[TrainSample]) -> dict[str, Any]:
    """A policy that goes on from another's shares, and one that only has its weights."""
    first, resumed = zero3_policies(2, case, folder, ranks)
    update(first, samples, RATES[0])
    shards, weights, steps = first.shards(), first.shards(("weights",)), first.steps_taken
    pushed = digest(dict(first.named_weights()))
    before = [everything(p) for p in (first, resumed)]
    resumed.load_state(first.state())
    resumed.load_shards(shards)
    loaded = [everything(p) for p in (first, resumed)]
    for policy in (first, resumed):
        update(policy, samples, RATES[1])
    after = [everything(p) for p in (first, resumed)]
    all_steps = [steps, first.steps_taken, resumed.steps_taken]
    weights_only = zero3_policy(case, folder, ranks)  # as it was loaded
    weights_only.load_shards(weights)
    kept = weights_only.shards(("weights",)).keys() == weights.keys()
    mine = {
        "before_differ": before[0] != before[1],
        "loaded_equal": loaded[0] == loaded[1],
        "after_equal": after[0] == after[1],
        "after_differs": after[0] != loaded[0],
        "weights_only_equal": kept and digest(dict(weights_only.named_weights())) == pushed,
        "weights_only_moments": sum(
            float(t.abs().sum()) for t in weights_only.shards(KINDS[1:]).values()
        ),
        "steps": all_steps,
    }
    return {key: [part[key] for part in ranks.gather(mine)] for key in mine}


def loading(name: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A model in shares against the same loaded whole: who has how much, and what it is."""
    import deepspeed

    settings, dtype = ModelSettings(path=str(folder / name)), torch.bfloat16
    truth = load_model(settings, dtype)
    drawn = torch.get_rng_state()
    model = load_partitioned(settings, dtype, config_of(folder), ranks)
    held = sum(p.numel() + p.ds_tensor.numel() for p in model.parameters())
    numbers = sum(p.numel() for p in truth.parameters())
    found = {}
    for parameter_name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[parameter_name] = parameter.detach().clone()
    buffers = [dict(m.named_buffers()) for m in (model, truth)]
    whole = dict(truth.named_parameters())
    mine = {
        "held": held / numbers,
        "names": list(found) == list(whole),
        "equal": all(same(found[n], whole[n]) for n in whole),
        "buffers": buffers[0].keys() == buffers[1].keys()
        and all(same(buffers[0][n], buffers[1][n]) for n in buffers[1]),
        "positions": {str(b.dtype) for n, b in buffers[0].items() if n.endswith("inv_freq")}
        == {"torch.float32"},
        "training": model.training,
        "drew": not torch.equal(torch.get_rng_state(), drawn),  # initial values nobody keeps
    }
    return {key: [part[key] for part in ranks.gather(mine)] for key in mine}


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The same type and bits."""
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def config_of(folder: Path) -> dict[str, Any]:
    """DeepSpeed's configuration, in bfloat16."""
    return _config(case_settings("bfloat16"), load_outline(case_model("kl", folder)))


def refused(name: str, folder: Path, ranks: Ranks) -> list[str]:
    """What each rank says of a model that cannot be loaded, or not be packed."""
    settings = case_settings("token_mean")
    model = settings.model.model_copy(update={"path": str(folder / name)})
    try:
        Zero3Model.load(settings.model_copy(update={"model": model}), ranks)
        message = "no error"
    except UserError as error:
        message = str(error)
    return ranks.gather(message)


def handed_over(policy: Zero3Model) -> dict[str, list[Any]]:
    """What rank 0 takes, and what all ranks hear if its disk is full meanwhile."""
    taken: Tensors = {}
    policy.hand_over(lambda weights: taken.update((n, t.clone()) for n, t in weights))

    def fail(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        next(weights)
        raise OSError("no space left")

    try:
        policy.hand_over(fail)
        message = "no error"
    except UserError as error:
        message = str(error)
    goes_on = digest(dict(policy.named_weights()))
    equal = digest(taken) == goes_on
    mine = {"count": len(taken), "equal": equal, "message": message, "goes_on": goes_on}
    return {key: [part[key] for part in policy.ranks.gather(mine)] for key in mine}


def away(case: str, folder: Path, ranks: Ranks, samples: list[TrainSample]) -> dict[str, Any]:
    """Two equal policies, of which one has everything but its weights leave between updates."""
    stays, goes = zero3_policies(2, case, folder, ranks)
    memory = goes.settings.memory.model_copy(update={"offload_during_rollout": True})
    goes.settings = goes.settings.model_copy(update={"memory": memory})
    facts: dict[str, list[Any]] = {"bytes": [], "meanwhile": [], "weights": [], "after": []}
    for _ in range(2):  # the first time there are no moments yet
        before, pushed = digest(goes.shards()), digest(dict(goes.named_weights()))
        optimizer = goes.engine.optimizer
        moving = [*optimizer.fp32_partitioned_groups_flat, optimizer.grad_partitions_flat_buffer]
        moving += [b.buffer for b in optimizer.ipg_buckets.values()]
        moving += [s[kind] for s in optimizer.optimizer.state.values() for kind in KINDS[1:]]
        places = [tensor.data for tensor in moving]
        for _ in range(2):  # a push after another
            goes.offload()
        facts["bytes"] += [[place.untyped_storage().nbytes() for place in places]]
        facts["meanwhile"] += [digest(goes.shards()) == before]
        facts["weights"] += [digest(dict(goes.named_weights())) == pushed]
        goes.reload()
        for p in (stays, goes):
            update(p, samples, RATES[0])
        facts["after"] += [everything(stays) == everything(goes)]
    return {key: [part[key] for part in ranks.gather(facts)] for key in facts}


@torch.no_grad()
def documents(policy: Zero3Model, samples: list[TrainSample]) -> list[float]:
    """Per sample, by how much its log-probs change when the text of sample 4 does."""
    shifted = tuple((i + 7) % 30 for i in answer_of(samples[4]))
    changed = [
        *samples[:4],
        replace(samples[4], token_ids=prompt_of(samples[4]) + shifted),
        *samples[5:],
    ]
    found = []
    for texts in (samples, changed):
        (batch,) = pack(texts, [1.0] * len(texts), 1024)  # the same one on every rank
        logp_T = policy.network(batch, temperature=TEMPERATURE).logp_T
        lengths = batch.samples_T.bincount().tolist()
        answers = map(tuple, map(torch.Tensor.tolist, batch.targets_T.split(lengths)))
        found.append(dict(zip(answers, logp_T.split(lengths), strict=True)))
    own, other = found
    return [
        (own[answer_of(s)] - other[answer_of(t)]).abs().max().item()
        for s, t in zip(samples, changed, strict=True)
    ]


def teacher(policy: Zero3Model, samples: list[TrainSample]) -> dict[str, Any]:
    """A teacher in shares: whether it follows as it should, and another goes on from it."""
    ranks, begun = policy.ranks, {n: t.clone() for n, t in policy.named_weights()}
    first, second = (Teacher(policy, 0.75, ranks) for _ in range(2))
    update(policy, samples, RATES[0])
    first.after_update(policy)
    now = {n: t.clone() for n, t in policy.named_weights()}
    followed = dict(first.named_weights())
    second.load_state(first.state())
    second.load_shards(first.shards())
    return {
        "held": sum(t.numel() for t in first.shards().values()) / sum(first.shard_sizes().values()),
        "follows": followed.keys() == begun.keys()
        and all(torch.equal(followed[n], begun[n].lerp(now[n], 0.25)) for n in begun),
        "moved": any(not torch.equal(followed[n], begun[n]) for n in begun),
        "goes_on": digest(dict(second.named_weights())) == digest(followed),
    }


def gradients(policy: Zero3Model) -> dict[str, bool]:
    """Whether they come by the right names, and are no copies."""
    found = dict(policy._gradients())
    buffer = policy.engine.optimizer.grad_partitions_flat_buffer.untyped_storage().data_ptr()
    return {
        "names": list(found) == [name for name, _ in policy._trained()],
        "lengths": all(len(found[n]) == p.ds_tensor.ds_numel for n, p in policy._trained()),
        "views": all(g.untyped_storage().data_ptr() == buffer for g in found.values()),
    }


def not_finite(
    what: str, policy: Zero3Model, clean: Zero3Model, samples: list[TrainSample]
) -> dict[str, list[Any]]:
    """A bad update of one of two equal policies, and then a good one of both."""
    ranks, before = policy.ranks, everything(policy)
    bad, hook = samples, None
    if what == "loss":  # finite, and its product with a ratio is not
        bad = [*samples[:3], replace(samples[3], advantages=(3e38,) * 4, logprobs=(-50.0,) * 4)]
    elif what == "sampler":
        bad = [*samples[:2], replace(samples[2], logprobs=(-1.0,) * 15 + (math.nan,))]
    elif ranks.rank == ranks.count - 1:
        weight = policy.model.get_parameter("model.layers.1.self_attn.v_proj.weight")
        hook = weight.register_hook(lambda g: torch.full_like(g, math.nan))
    try:
        update(policy, bad, RATES[0])
        message = "no error"
    except FloatingPointError as error:
        message = str(error)
    if hook is not None:
        hook.remove()
    unchanged = everything(policy) == before
    for p in (policy, clean):
        update(p, samples, RATES[1])
    mine = {
        "message": message,
        "unchanged": unchanged,
        "goes_on": everything(policy) == everything(clean),
    }
    return {key: [part[key] for part in ranks.gather(mine)] for key in mine}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
