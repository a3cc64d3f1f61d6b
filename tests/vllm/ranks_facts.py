"""What two ranks see, each with a vLLM, of weights that both hold in shares; written as JSON.

torchrun --nproc_per_node=2 ranks_facts.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from pushes import (
    PARAMS,
    Facts,
    change,
    gap,
    questions_for,
    reused_buffer,
    tokens,
    traps,
    vllm_settings,
)

from ttrl.learner.zero3 import Zero3Model
from ttrl.models.packed_model import load_policy_model
from ttrl.models.pretrained import load_tokenizer
from ttrl.rollout.pool import make_pool
from ttrl.system.ranks import join_ranks


def main(folder: str) -> None:
    ranks = join_ranks()
    settings = vllm_settings("rollout.kv_cache_gb=1")
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(settings.model)
    questions = questions_for(tokenizer)
    policy = Zero3Model(load_policy_model(settings.model), settings, ranks)
    pool = make_pool(settings, tokenizer, ranks, load_weights=False)

    pool.push_weights(policy)
    facts: Facts = {"loaded": gap(pool, policy, questions)}
    change(policy)
    facts["changed"] = gap(pool, policy, questions)
    for i in range(3):
        change(policy)
        pool.push_weights(policy)
        facts[f"pushed_{i}"] = gap(pool, policy, questions)
    pool._engine.load_weights(reused_buffer(policy))
    facts["reused_buffer"] = gap(pool, policy, questions)
    facts |= traps(pool, policy, questions)
    # At the end, since how long answers are decides who samples what, and so who has it cached.
    mine: list[str] = []
    groups = pool.sample(questions, PARAMS, lambda group: mine.append(group.question.id))
    facts |= {"mine": mine, "tokens": tokens(groups)}
    Path(folder, f"rank_{ranks.rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    ranks.gather(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
