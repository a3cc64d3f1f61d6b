"""A vLLM in a process of its own, written down as JSON.

python separate_facts.py MODEL OUTPUT
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from facts import PARAMS, change, gap, refusal, tokens

from ttrl.policy.local import LocalPolicy
from ttrl.policy.model import load_policy_model
from ttrl.pretrained import load_tokenizer
from ttrl.recipe import load_settings
from ttrl.rollout.pool import make_pool
from ttrl.types import Question


def main(model: str, output: str) -> None:
    settings = load_settings(
        "tiny-arithmetic",
        overrides=[
            f"model.path={model}",
            "rollout.engine=vllm",
            "rollout.kv_cache_gb=1",
            "rollout.placement=separate",
            "rollout.temperature=1.3",
        ],
    )
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(settings.model)
    prompts = [f"What is {a} + 27? " * 6 for a in (15, 48, 63)]
    questions = [Question(p[:12], p, tuple(tokenizer.encode(p))) for p in prompts]
    policy = LocalPolicy(load_policy_model(settings.model), settings)
    facts: dict[str, Any] = {}
    with closing(make_pool(settings, tokenizer, empty=True)) as pool:
        facts["unfilled"] = refusal(lambda: pool.sample(questions, PARAMS))
        pool.refresh(policy)
        facts["loaded"] = gap(pool, policy, questions)
        facts["again"] = [tokens(pool.sample(questions, PARAMS)) for _ in range(2)]
        change(policy)
        facts["changed"] = gap(pool, policy, questions)
        pool.refresh(policy)
        facts["pushed"] = gap(pool, policy, questions)
        pool.sleep()
        facts["asleep"] = refusal(lambda: pool.sample(questions, PARAMS))
        change(policy)
        pool.refresh(policy)
        facts["woken"] = gap(pool, policy, questions)
        facts["vllm_here"] = "vllm" in sys.modules
    Path(output).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
