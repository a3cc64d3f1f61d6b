"""What one vLLM does, written down as JSON: started once, since that takes most of the time.

python facts.py MODEL OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ttrl.policy.local import LocalPolicy
from ttrl.policy.model import load_policy_model
from ttrl.policy.update import Policy
from ttrl.pretrained import load_tokenizer
from ttrl.recipe import load_settings
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import SamplingParams, sampling_logprobs
from ttrl.types import CompletionGroup, Question, UserError

PARAMS = SamplingParams(n=8, temperature=1.3, max_new_tokens=48, stream=(0, "rollout", 1))
Weights = Iterable[tuple[str, torch.Tensor]]


def main(model: str, output: str) -> None:
    settings = load_settings(
        "tiny-arithmetic",
        overrides=[f"model.path={model}", "rollout.engine=vllm", "rollout.temperature=1.3"],
    )
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    tokenizer = load_tokenizer(settings.model)
    # Long prompts, so that there are blocks of 32 tokens to be cached and shared.
    prompts = [f"What is {a} + 27? " * 6 for a in (15, 48, 63)]
    questions = [Question(p[:12], p, tuple(tokenizer.encode(p))) for p in prompts]
    policy = LocalPolicy(load_policy_model(settings.model), settings)
    pool = make_pool(settings, tokenizer, empty=True)
    engine = pool._engine
    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "unfilled": refusal(lambda: pool.sample(questions, PARAMS)),
    }
    torch.set_num_threads(1)
    facts["threads_after"] = torch.get_num_threads()

    # Pushes.
    pool.refresh(policy)
    facts["loaded"] = gap(pool, policy, questions)
    before = [p.detach().clone() for p in policy.model.parameters()]
    change(policy)
    facts["changed"] = gap(pool, policy, questions)
    pool.refresh(policy)
    facts["pushed"] = gap(pool, policy, questions)
    pool.sleep()
    facts["asleep"] = refusal(lambda: pool.sample(questions, PARAMS))
    change(policy)
    pool.refresh(policy)
    facts["woken"] = gap(pool, policy, questions)
    engine.load_weights(reused_buffer(policy))
    facts["reused_buffer"] = gap(pool, policy, questions)

    # What is sampled.
    groups = pool.sample(questions, PARAMS)
    facts["groups"] = [describe(g) for g in groups]
    facts["again"] = tokens(pool.sample(questions, PARAMS)) == tokens(groups)
    facts["other_stream"] = tokens(pool.sample(questions, replace(PARAMS, stream=(1,))))
    parts = [pool.sample(questions, replace(PARAMS, n=4, first=i))[0] for i in (0, 4)]
    facts["in_parts"] = [list(c.token_ids) for part in parts for c in part.completions]
    short = replace(PARAMS, max_new_tokens=5)
    facts["short"] = [describe(g) for g in pool.sample(questions, short)]
    for top_p in (1.0, 0.5):
        params = replace(PARAMS, top_p=top_p, n=4)
        facts[f"plain_{top_p}"] = plain_gap(model, policy, pool.sample(questions, params), params)
    facts["too_long"] = refusal(
        lambda: pool.sample(questions, replace(PARAMS, max_new_tokens=9000))
    )
    order = (i for i, _ in engine.sample(questions, PARAMS))
    next(order)
    order.close()  # the others are given up
    facts["after_giving_up"] = tokens(pool.sample(questions, PARAMS)) == tokens(groups)
    facts["deterministic"] = torch.are_deterministic_algorithms_enabled()
    facts["preload"] = os.environ.get("LD_PRELOAD")

    # The traps, each without what guards against it.
    change(policy)
    raw_push(engine, policy.named_weights())
    facts["trap_prefix_cache"] = gap(pool, policy, questions)
    engine._llm.reset_prefix_cache()
    facts["trap_prefix_cache_reset"] = gap(pool, policy, questions)
    raw_push(engine, reused_buffer(policy))
    engine._llm.reset_prefix_cache()
    facts["trap_buffer"] = gap(pool, policy, questions)
    change(policy)
    some = [(n, t) for n, t in policy.named_weights() if "layers.1.mlp.down_proj" not in n]
    raw_push(engine, some)
    engine._llm.reset_prefix_cache()
    facts["trap_partial"] = gap(pool, policy, questions)
    with torch.no_grad():
        for parameter, value in zip(policy.model.parameters(), before, strict=True):
            parameter.copy_(value)
    pool.refresh(policy)
    facts["recovered"] = gap(pool, policy, questions)
    facts["partial"] = refusal(lambda: engine.load_weights(some))
    facts["after_partial"] = refusal(lambda: pool.sample(questions, PARAMS))
    Path(output).write_text(json.dumps(facts), encoding="utf-8")


def gap(pool: RolloutPool, policy: Policy, questions: list[Question]) -> float | str:
    """The largest |engine - policy| of a log-prob, and what the pool says if it is too large."""
    groups = pool.sample(questions, PARAMS)
    largest = max(
        abs(ours - theirs)
        for g in groups
        for c in g.completions
        for ours, theirs in zip(
            c.logprobs, policy.logprobs(g.question.prompt_ids, c.token_ids), strict=True
        )
    )
    refused = refusal(lambda: pool.verify(policy, questions, PARAMS, "float32"))
    return f"{largest}: {refused}" if refused else largest


@torch.no_grad()
def plain_gap(
    path: str, policy: LocalPolicy, groups: list[CompletionGroup], params: SamplingParams
) -> float:
    """The largest difference from plain forwards of an ordinary model with the same weights."""
    model = AutoModelForCausalLM.from_pretrained(path)
    for name, tensor in policy.named_weights():
        model.get_parameter(name).copy_(tensor)
    gaps = []
    for g in groups:
        for c in g.completions:
            logits_TV = model(torch.tensor([[*g.question.prompt_ids, *c.token_ids]])).logits[0]
            rows_nV = logits_TV[len(g.question.prompt_ids) - 1 : -1]
            expected_nV = sampling_logprobs(rows_nV, params.temperature, params.top_p)
            ids_n1 = torch.tensor(c.token_ids).unsqueeze(1)
            gaps.append((expected_nV.gather(1, ids_n1)[:, 0] - torch.tensor(c.logprobs)).abs())
    return torch.cat(gaps).max().item()


def refusal(call: Any) -> str:
    try:
        call()
    except (UserError, RuntimeError) as error:
        return str(error)
    return ""


@torch.no_grad()
def change(policy: LocalPolicy) -> None:
    """Other weights, about as good."""
    for i, parameter in enumerate(policy.model.parameters()):
        parameter.mul_(1 + 0.03 * (-1) ** i)


def reused_buffer(policy: LocalPolicy) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's weights, all through one buffer."""
    buffer = torch.empty(max(t.numel() for _, t in policy.named_weights()))
    for name, tensor in policy.named_weights():
        part = buffer[: tensor.numel()].view(tensor.shape)
        part.copy_(tensor.detach())
        yield name, part


def raw_push(engine: Any, weights: Weights) -> None:
    """A push as vLLM offers it, with nothing of ours but the name of the tied layer."""

    def named() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            yield name, tensor.detach()
            if name in engine._tied:
                yield engine._tied[name], tensor.detach().clone()

    engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named()})


def tokens(groups: list[CompletionGroup]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in g.completions] for g in groups]


def describe(group: CompletionGroup) -> list[list[Any]]:
    return [[c.token_ids, c.logprobs, c.text, str(c.finish_reason)] for c in group.completions]


if __name__ == "__main__":
    main(*sys.argv[1:])
