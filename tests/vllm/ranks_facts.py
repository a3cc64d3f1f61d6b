"""What two ranks see, each with a vLLM, of weights that both hold in shares; written as JSON.

torchrun --nproc_per_node=2 ranks_facts.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from patched_pools import command, give, shared, stay_in_groups
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
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.system.ranks import Ranks, join_ranks

PAIRS = ((12, 34), (47, 85), (659, 747), (8, 1))
WAYS = ("alone", "each", "shared")
MOST = 12
"""Answers to a question, where none are left out."""
EARLY = (
    *("threads=1", f"evaluation.samples={MOST}", "evaluation.greedy=false", "evaluation.top_p=1.0"),
    *("selection.window=6", "selection.warm_up=4", "selection.warm_up_keep=0.6"),
    *("selection.consensus=1.0", "rollout.engine=vllm", "rollout.kv_cache_gb=1"),
)


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
    # It ends the engines, and with the last one the groups that the ranks are in.
    facts["stopped_early"] = stopped_early(Path(folder), pool, ranks)
    Path(folder, f"rank_{ranks.rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def stopped_early(folder: Path, pool: RolloutPool, ranks: Ranks) -> list[Any]:
    """What rank 0 reads from ``ttrl eval --stop-early`` of each question: with its engine alone,
    with one on each rank, and with one that both share."""
    rows = [{"id": f"{a}", "prompt": f"What is {a} + {b}?", "answer": f"{a + b}"} for a, b in PAIRS]
    data = folder / "questions.jsonl"  # the same for all: its name decides what is drawn
    ranks.on_rank_zero(lambda: data.write_text("".join(json.dumps(row) + "\n" for row in rows)))
    words = ["eval", "tiny-base", str(data), "--recipe", "tiny-arithmetic"]
    words += ["--select", "deepconf", "--stop-early"]
    words += [word for setting in EARLY for word in ("--set", setting)]
    stay_in_groups()
    found = []
    for way in WAYS:
        more: tuple[str, ...] = ()
        if way == "alone":
            give(shared(pool._engine))
        elif way == "each":
            give(shared(pool._engine, ranks))
        else:
            with patch("torch.distributed.destroy_process_group"):  # the ranks stay together
                pool.close()
            give(make_pool)
            more = ("--set", "rollout.tensor_parallel=2")
        output = folder / f"{way}_{ranks.rank}.json"
        command(*words, "--json", str(output), *more)
        if ranks.is_main:  # who alone writes it
            found.append(json.loads(output.read_text())["results"][0]["questions"])
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
