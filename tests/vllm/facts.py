"""What one vLLM does, written down as JSON: started once, since that takes most of the time.

python facts.py OUTPUT
"""

from __future__ import annotations

import io
import json
import os
import sys
import weakref
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ttrl import cli
from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.models.pretrained import TINY_BASE, load_tokenizer
from ttrl.report.rollouts import RecordedAnswer
from ttrl.rollout.ends import has_ended
from ttrl.rollout.engines import vllm_contract
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import ConfidenceFloor, SamplingParams, sampling_logprobs
from ttrl.selection.scores import tokens_of
from ttrl.selection.stopping import GroupConfidences
from ttrl.types import CompletionGroup, Question
from ttrl.types.top_logprobs import TopLogprobs

FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "top_p": {"top_p": 0.5},
    "likeliest": {"top_logprobs": 4},
    "likeliest_of_few": {"top_logprobs": 4, "top_p": 0.7},
    "top_k": {"top_k": 3},
    "greedy": {"temperature": 0.0, "top_logprobs": 4},
    "every_filter": {"top_k": 7, "top_p": 0.9, "min_p": 0.02},
    "whole_vocabulary": {"top_k": 128, "top_p": 0.99},
}

STOPS = ("=", "+1")
WINDOW = 6
"""Tokens of a group, in answers whose confidence is watched."""


def main(output: str) -> None:
    settings = vllm_settings('rollout.stop=["="]')  # so that it can see any
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
    llm = weakref.ref(pool._engine._llm)
    pool.close()
    facts["let_go"] = llm() is None
    facts["refused"] = refused(Path(output).parent)
    facts["contract"] = vllm_contract.broken_contract()
    vllm_contract.CONTRACT |= {"vllm.LLM.no_such": (), "vllm.SamplingParams": ("n", "no_field")}
    facts["broken_contract"] = vllm_contract.broken_contract()
    Path(output).write_text(json.dumps(facts), encoding="utf-8")


def samples(pool: RolloutPool, policy: LocalModel, questions: list[Question]) -> Facts:
    """What is sampled, all at the same weights."""
    engine: Any = pool._engine
    groups = pool.sample(questions, PARAMS)
    facts: Facts = {"groups": [describe(g) for g in groups]}
    facts["again"] = tokens(pool.sample(questions, PARAMS)) == tokens(groups)
    facts["other_stream"] = tokens(pool.sample(questions, replace(PARAMS, stream=(1,))))
    parts = [pool.sample(questions, replace(PARAMS, n=4, first=i))[0] for i in (0, 4)]
    facts["in_parts"] = [list(c.token_ids) for part in parts for c in part.completions]
    facts |= watched(pool, questions)
    short = replace(PARAMS, max_new_tokens=5)
    facts["short"] = [describe(g) for g in pool.sample(questions, short)]
    for name, filters in FILTERS.items():
        params = replace(PARAMS, n=4, **filters)
        facts[f"plain_{name}"] = plain_gap(policy, pool.sample(questions, params), params)
    stopping = replace(PARAMS, stop=STOPS)
    facts["stopped"] = [describe(g) for g in pool.sample(questions, stopping)]
    facts["stopped_too_late"] = [
        ids
        for group in facts["stopped"]
        for ids, *_ in group
        if has_ended(ids[:-1], engine.stop_ids, STOPS, engine.tokenizer)
    ]
    facts["too_long"] = refusal(
        lambda: pool.sample(questions, replace(PARAMS, max_new_tokens=9000))
    )
    order: Any = (i for i, _ in pool._engine.sample(questions, PARAMS))
    next(order)
    order.close()  # the others are given up
    facts["after_giving_up"] = tokens(pool.sample(questions, PARAMS)) == tokens(groups)
    return facts


def watched(pool: RolloutPool, questions: list[Question]) -> Facts:
    """Answers that are broken off at a low confidence, and where whole ones say that they are."""
    noted = replace(PARAMS, top_logprobs=4)
    whole = pool.sample(questions, noted)
    traces = {
        g.question.id: [
            GroupConfidences(tokens_of(RecordedAnswer.of(c)), WINDOW) for c in g.completions
        ]
        for g in whole
    }
    # Between the lowest groups of two answers, and at none: rounding decides nothing.
    least = {id: float(np.sort([t.lowest for t in of])[3:5].mean()) for id, of in traces.items()}
    found = pool.sample(questions, replace(noted, floor=ConfidenceFloor(WINDOW, least)))
    return {
        "watched": [describe(g) for g in found],
        "watched_whole": [describe(g) for g in whole],
        "watched_until": [
            [trace.tokens_until(least[g.question.id]) for trace in traces[g.question.id]]
            for g in whole
        ],
    }


def refused(folder: Path) -> Facts:
    """What a user hears of a model that vLLM loads, and fails on at its first token: its heads have
    24 numbers."""
    config = AutoConfig.from_pretrained(TINY_BASE)
    config.hidden_size = 96
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(TINY_BASE).save_pretrained(folder / "model")
    command = ("ttrl", "train", "tiny-arithmetic", "--run-dir", str(folder / "run"), "--set")
    sys.argv = [*command, "rollout.engine=vllm", "--set", f"model.path={folder / 'model'}"]
    code: Any = 0
    with redirect_stderr(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return {"code": code, "said": said.getvalue(), "begun": (folder / "run").exists()}


@torch.no_grad()
def plain_gap(
    policy: LocalModel, groups: list[CompletionGroup], params: SamplingParams
) -> list[float]:
    """The largest difference from plain forwards of an ordinary model with the same weights: of
    the sampled tokens' log-probs, and of those of the likeliest ones, in their order."""
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE)
    for name, tensor in policy.named_weights():
        model.get_parameter(name).copy_(tensor)
    gaps, likeliest = [], [0.0]
    for g in groups:
        for c in g.completions:
            logits_TV = model(torch.tensor([[*g.question.prompt_ids, *c.token_ids]])).logits[0]
            rows_nV = logits_TV[len(g.question.prompt_ids) - 1 : -1]
            expected_nV = sampling_logprobs(
                rows_nV, params.temperature, params.top_p, params.top_k, params.min_p
            )
            ids_n1 = torch.tensor(c.token_ids).unsqueeze(1)
            gaps.append((expected_nV.gather(1, ids_n1)[:, 0] - torch.tensor(c.logprobs)).abs())
            if params.noted:
                assert c.top_logprobs is not None
                assert c.top_logprobs.whole == (params.top_k > 0)
                likeliest += top_gaps(c.top_logprobs, expected_nV, params.noted)
    return [torch.cat(gaps).max().item(), max(likeliest)]


def top_gaps(top: TopLogprobs, expected_nV: torch.Tensor, count: int) -> list[float]:
    """The largest difference in each place: of the noted tokens, and of the likeliest ones."""
    gaps = []
    for (ids, logprobs), expected_V in zip(top, expected_nV, strict=True):
        possible = int((expected_V > -torch.inf).sum())
        assert len(set(ids)) == len(ids) == min(count, possible), (ids, possible)
        for values in (expected_V[list(ids)], expected_V.topk(len(ids)).values):
            gaps.append((values - torch.tensor(list(logprobs))).abs().max().item())
    return gaps


def describe(group: CompletionGroup) -> list[list[Any]]:
    return [[c.token_ids, c.logprobs, c.text, str(c.finish_reason)] for c in group.completions]


if __name__ == "__main__":
    main(*sys.argv[1:])
