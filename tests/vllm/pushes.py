"""What all scripts do here: questions, pushes and their traps, and how far engine and policy are
apart after each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.learner.trained_model import TrainedModel
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import CompletionGroup, Question, UserError

PARAMS = SamplingParams(n=8, temperature=1.3, max_new_tokens=48, stream=(0, "rollout", 1))
FEW = replace(PARAMS, n=4, max_new_tokens=16)
"""Enough to see whether an engine computes the policy."""
BUFFER = 2**20
"""Numbers: more than the largest tensor of the embedded model has."""

Weights = Iterable[tuple[str, torch.Tensor]]
Facts = dict[str, Any]


def vllm_settings(*more: str) -> Settings:
    """Of the embedded model, sampled by vLLM at the temperature of `PARAMS`."""
    overrides = ["rollout.engine=vllm", f"rollout.temperature={PARAMS.temperature}", *more]
    return load_settings("tiny-arithmetic", overrides=overrides)


def questions_for(tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """Long prompts, so that there are blocks of 32 tokens to be cached and shared."""
    prompts = [f"What is {a} + 27? " * 6 for a in (15, 48, 63)]
    return [Question(p[:12], p, tuple(tokenizer.encode(p))) for p in prompts]


def pushes(pool: RolloutPool, policy: TrainedModel, questions: list[Question]) -> Facts:
    """From an engine that holds no weights to one that was pushed to, slept and was woken."""
    facts: Facts = {"unfilled": refusal(lambda: pool.sample(questions, PARAMS))}
    pool.push_weights(policy)
    facts["loaded"] = gap(pool, policy, questions)
    change(policy)
    facts["changed"] = gap(pool, policy, questions)
    pool.push_weights(policy)
    facts["pushed"] = gap(pool, policy, questions)
    pool.sleep()
    facts["asleep"] = refusal(lambda: pool.sample(questions, PARAMS))
    change(policy)
    pool.push_weights(policy)
    facts["woken"] = gap(pool, policy, questions)
    return facts


def traps(pool: RolloutPool, policy: TrainedModel, questions: list[Question]) -> Facts:
    """Each without what guards against it; then the guard against a partial push, and the way
    back."""
    engine: Any = pool._engine
    facts: Facts = {}
    change(policy)
    raw_push(engine, policy.named_weights())
    facts["trap_prefix_cache"] = gap(pool, policy, questions)
    engine._llm.reset_prefix_cache()
    facts["trap_prefix_cache_reset"] = gap(pool, policy, questions)
    raw_push(engine, reused_buffer(policy))
    engine._llm.reset_prefix_cache()
    facts["trap_buffer"] = gap(pool, policy, questions)
    change(policy)
    raw_push(engine, some_of(policy))
    engine._llm.reset_prefix_cache()
    facts["trap_partial"] = gap(pool, policy, questions)
    facts["partial"] = refusal(lambda: engine.load_weights(some_of(policy)))
    facts["after_partial"] = refusal(lambda: pool.sample(questions, PARAMS))
    pool.push_weights(policy)
    facts["recovered"] = gap(pool, policy, questions)
    return facts


def gap(pool: RolloutPool, policy: TrainedModel, questions: list[Question]) -> float | str:
    """The largest |engine - policy| of a log-prob, and what the pool says if it is too large."""
    found = pool.agreement(policy, questions, FEW)
    if found.holds("float32"):
        return found.largest
    return f"{found.largest}: {refusal(lambda: pool.verify(policy, questions, FEW, 'float32'))}"


def refusal(call: Any) -> str:
    """The error of a call; empty if there is none."""
    try:
        call()
    except (UserError, RuntimeError) as error:
        return str(error)
    return ""


def change(policy: TrainedModel) -> None:
    """Other weights, about as good."""
    shares = policy.shards(("weights",))
    policy.load_shards({k: t * (1 + 0.03 * (-1) ** i) for i, (k, t) in enumerate(shares.items())})


def reused_buffer(policy: TrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's weights, all through one buffer."""
    buffer = torch.empty(BUFFER)
    for name, tensor in policy.named_weights():
        part = buffer[: tensor.numel()].view(tensor.shape)
        part.copy_(tensor.detach())
        yield name, part


def some_of(policy: TrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights but one."""
    for name, tensor in policy.named_weights():
        if "layers.1.mlp.down_proj" not in name:
            yield name, tensor


def raw_push(engine: Any, weights: Weights) -> None:
    """A push as vLLM offers it, with nothing of ours but the name of the tied layer."""

    def named() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            yield name, tensor.detach()
            if name in engine._tied:
                yield engine._tied[name], tensor.detach().clone()

    engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named()})


def tokens(groups: list[CompletionGroup]) -> list[list[tuple[int, ...]]]:
    """By question, those of each completion."""
    return [[c.token_ids for c in g.completions] for g in groups]
