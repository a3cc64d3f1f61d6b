"""What one vLLM does, written down as JSON: started once, since that takes most of the time.

python facts.py OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pushes import (
    PARAMS,
    Facts,
    gap,
    pushes,
    questions_for,
    refusal,
    reused_buffer,
    tokens,
    traps,
    vllm_settings,
)
from transformers import AutoModelForCausalLM

from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.models.pretrained import TINY_BASE, load_tokenizer
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import SamplingParams, sampling_logprobs
from ttrl.types import CompletionGroup, Question


def main(output: str) -> None:
    settings = vllm_settings()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    tokenizer = load_tokenizer(settings.model)
    questions = questions_for(tokenizer)
    policy = LocalModel(load_policy_model(settings.model), settings)
    pool = make_pool(settings, tokenizer, load_weights=False)
    facts: Facts = {"threads": torch.get_num_threads()}
    torch.set_num_threads(1)
    facts["threads_after"] = torch.get_num_threads()
    facts |= pushes(pool, policy, questions)
    pool._engine.load_weights(reused_buffer(policy))
    facts["reused_buffer"] = gap(pool, policy, questions)
    facts |= samples(pool, policy, questions)
    facts["deterministic"] = torch.are_deterministic_algorithms_enabled()
    facts["preload"] = os.environ.get("LD_PRELOAD")
    facts |= traps(pool, policy, questions)
    Path(output).write_text(json.dumps(facts), encoding="utf-8")


def samples(pool: RolloutPool, policy: LocalModel, questions: list[Question]) -> Facts:
    """What is sampled, all at the same weights."""
    groups = pool.sample(questions, PARAMS)
    facts: Facts = {"groups": [describe(g) for g in groups]}
    facts["again"] = tokens(pool.sample(questions, PARAMS)) == tokens(groups)
    facts["other_stream"] = tokens(pool.sample(questions, replace(PARAMS, stream=(1,))))
    parts = [pool.sample(questions, replace(PARAMS, n=4, first=i))[0] for i in (0, 4)]
    facts["in_parts"] = [list(c.token_ids) for part in parts for c in part.completions]
    short = replace(PARAMS, max_new_tokens=5)
    facts["short"] = [describe(g) for g in pool.sample(questions, short)]
    for top_p in (1.0, 0.5):
        params = replace(PARAMS, top_p=top_p, n=4)
        facts[f"plain_{top_p}"] = plain_gap(policy, pool.sample(questions, params), params)
    facts["too_long"] = refusal(
        lambda: pool.sample(questions, replace(PARAMS, max_new_tokens=9000))
    )
    order: Any = (i for i, _ in pool._engine.sample(questions, PARAMS))
    next(order)
    order.close()  # the others are given up
    facts["after_giving_up"] = tokens(pool.sample(questions, PARAMS)) == tokens(groups)
    return facts


@torch.no_grad()
def plain_gap(policy: LocalModel, groups: list[CompletionGroup], params: SamplingParams) -> float:
    """The largest difference from plain forwards of an ordinary model with the same weights."""
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE)
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


def describe(group: CompletionGroup) -> list[list[Any]]:
    return [[c.token_ids, c.logprobs, c.text, str(c.finish_reason)] for c in group.completions]


if __name__ == "__main__":
    main(*sys.argv[1:])
