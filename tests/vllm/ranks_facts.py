"""What two ranks see, each with a vLLM, of weights that both hold in shares; written as JSON.

torchrun --nproc_per_node=2 ranks_facts.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from facts import PARAMS, gap, raw_push, refusal

from ttrl.policy.model import load_policy_model
from ttrl.policy.zero3 import Zero3Policy
from ttrl.pretrained import load_tokenizer
from ttrl.ranks import join_ranks
from ttrl.recipe import load_settings
from ttrl.rollout.pool import make_pool
from ttrl.types import Question

SETTINGS = ["rollout.engine=vllm", "rollout.temperature=1.3", "rollout.kv_cache_gb=1"]


def main(folder: str) -> None:
    ranks = join_ranks()
    settings = load_settings("tiny-arithmetic", overrides=SETTINGS)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(settings.model)
    prompts = [f"What is {a} + 27? " * 6 for a in (15, 48, 63)]
    questions = [Question(p[:12], p, tuple(tokenizer.encode(p))) for p in prompts]
    policy = Zero3Policy(load_policy_model(settings.model), settings, ranks)
    pool = make_pool(settings, tokenizer, ranks, empty=True)
    engine = pool._engine
    facts: dict[str, Any] = {}

    pool.refresh(policy)
    facts["loaded"] = gap(pool, policy, questions)
    change(policy)
    facts["changed"] = gap(pool, policy, questions)
    for i in range(3):
        change(policy)
        pool.refresh(policy)
        facts[f"pushed_{i}"] = gap(pool, policy, questions)
    engine.load_weights(reused_buffer(policy))
    facts["reused_buffer"] = gap(pool, policy, questions)
    mine: list[str] = []
    groups = pool.sample(questions, PARAMS, lambda group: mine.append(group.question.id))
    facts["mine"] = mine
    facts["tokens"] = [[c.token_ids for c in g.completions] for g in groups]

    # The traps, each without what guards against it.
    change(policy)
    raw_push(engine, policy.named_weights())
    facts["trap_prefix_cache"] = gap(pool, policy, questions)
    raw_push(engine, reused_buffer(policy))
    engine._llm.reset_prefix_cache()
    facts["trap_buffer"] = gap(pool, policy, questions)
    change(policy)
    raw_push(engine, some_of(policy))
    engine._llm.reset_prefix_cache()
    facts["trap_partial"] = gap(pool, policy, questions)
    facts["partial"] = refusal(lambda: engine.load_weights(some_of(policy)))
    facts["after_partial"] = refusal(lambda: engine.sample(questions, PARAMS).__next__())
    pool.refresh(policy)
    facts["recovered"] = gap(pool, policy, questions)
    Path(folder, f"rank_{ranks.rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    ranks.gather(None)


def change(policy: Zero3Policy) -> None:
    """Other weights, about as good."""
    shares = policy.shares(("weights",))
    policy.load_shares({k: t * (1 + 0.03 * (-1) ** i) for i, (k, t) in enumerate(shares.items())})


def reused_buffer(policy: Zero3Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's weights, all through one buffer."""
    buffer = torch.empty(2**20)
    for name, tensor in policy.named_weights():
        part = buffer[: tensor.numel()].view(tensor.shape)
        part.copy_(tensor)
        yield name, part


def some_of(policy: Zero3Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights but one."""
    for name, tensor in policy.named_weights():
        if "layers.1.mlp.down_proj" not in name:
            yield name, tensor


if __name__ == "__main__":
    main(*sys.argv[1:])
