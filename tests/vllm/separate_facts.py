"""A vLLM in a process of its own, written down as JSON.

python separate_facts.py OUTPUT
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import torch
from pushes import PARAMS, Facts, pushes, questions_for, tokens, vllm_settings

from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.models.pretrained import load_tokenizer
from ttrl.rollout.pool import make_pool


def main(output: str) -> None:
    settings = vllm_settings("rollout.kv_cache_gb=1", "rollout.placement=separate")
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(settings.model)
    questions = questions_for(tokenizer)
    policy = LocalModel(load_policy_model(settings.model), settings)
    with closing(make_pool(settings, tokenizer, load_weights=False)) as pool:
        facts: Facts = pushes(pool, policy, questions)
        facts["again"] = [tokens(pool.sample(questions, PARAMS)) for _ in range(2)]
        facts["vllm_here"] = "vllm" in sys.modules
    Path(output).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
