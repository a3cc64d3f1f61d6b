"""Generated tokens per second: our vLLM pool, bare vLLM, and what people use where there is none.

    .venv/bin/python bench/rollouts.py                    the embedded task's questions and model
    .venv/bin/python bench/rollouts.py --rounds 1 --questions 2 --votes 4      a quick look
    .venv/bin/python bench/rollouts.py --model qwen2.5-math-1.5b --set model.dtype=bfloat16

One process, one vLLM, all contenders in turn, several times over, each round in another order: in a
fixed one, ours came out a tenth slower, always right after `generate`. The prefix cache is emptied
before each. "bare vLLM" is `LLM.generate` with the very request parameters that the pool makes:
what the pool adds (log-probs taken out, texts decoded, completions checked) is the difference.
Prints a table, and writes ``bench/results/rollouts.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import ROOT, describe
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ttrl.data.questions import load_questions
from ttrl.models.pretrained import load_model, load_tokenizer
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.engines.vllm_contract import require_vllm
from ttrl.rollout.engines.vllm_engine import VllmEngine
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks
from ttrl.types import Question

Contender = Callable[[], int]
"""Samples everything once; returns how many tokens it generated."""


def ours(pool: RolloutPool, questions: Sequence[Question], params: SamplingParams) -> Contender:
    """The pool, as training calls it."""

    def run() -> int:
        groups = pool.sample(questions, params)
        return sum(len(c.token_ids) for g in groups for c in g.completions)

    return run


def bare_vllm(
    engine: VllmEngine, questions: Sequence[Question], params: SamplingParams, *, single: bool
) -> Contender:
    """`LLM.generate`; ``single``: n requests of one sample each, instead of one of n."""
    prompts, requests = [], []
    for question in questions:
        request = engine._request_params(question, params)
        for i in range(params.n if single else 1):
            prompts.append({"prompt_token_ids": list(question.prompt_ids)})
            one = request.clone()
            if single:
                one.n, one.seed = 1, request.seed + i
            requests.append(one)

    def run() -> int:
        outputs = engine._llm.generate(prompts, requests, use_tqdm=False)
        return sum(len(c.token_ids) for o in outputs for c in o.outputs)

    return run


def plain_generate(
    model: Any, questions: Sequence[Question], params: SamplingParams, stop: set[int], pad: int
) -> Contender:
    """transformers' own `generate`, one question at a time, all samples in one batch."""

    @torch.inference_mode()
    def run() -> int:
        tokens = 0
        for question in questions:
            ids = torch.tensor([question.prompt_ids], device=model.device)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=params.temperature,
                top_k=0,
                num_return_sequences=params.n,
                max_new_tokens=params.max_new_tokens,
                eos_token_id=sorted(stop),
                pad_token_id=pad,
            )
            for row in out[:, ids.shape[1] :].tolist():
                ends = [i for i, token in enumerate(row) if token in stop]
                tokens += ends[0] + 1 if ends else len(row)
        return tokens

    return run


def contenders(settings: Settings, count: int) -> tuple[dict[str, Contender], VllmEngine]:
    """By name, ours first."""
    tokenizer = load_tokenizer(settings.model)
    questions = load_questions(settings.data.train, settings.data, tokenizer).questions[:count]
    rollout = settings.rollout
    params = SamplingParams(
        rollout.votes, rollout.temperature, rollout.max_new_tokens, stream=(settings.seed, "bench")
    )
    engine = VllmEngine(settings, tokenizer, Ranks(), load_weights=True)
    model = load_model(settings.model, getattr(torch, settings.model.dtype))
    other = TransformersEngine(model, tokenizer, rollout.batch_size)
    stop, pad = set(engine.stop_ids), tokenizer.pad_token_id or min(engine.stop_ids)
    return {
        "our pool, vLLM": ours(RolloutPool(engine), questions, params),
        "bare vLLM": bare_vllm(engine, questions, params, single=False),
        "vLLM, single requests": bare_vllm(engine, questions, params, single=True),
        "our pool, transformers": ours(RolloutPool(other), questions, params),
        "transformers generate": plain_generate(other.model, questions, params, stop, pad),
    }, engine


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder, hub name or model recipe")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--votes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "rollouts.json")
    options = parser.parse_args()
    overrides = [
        "rollout.engine=vllm",
        f"rollout.votes={options.votes}",
        "policy.trained_samples=1",  # nothing is trained on
        "policy.sequences_per_update=1",
    ]
    settings = load_settings(
        "tiny-arithmetic", model=options.model, overrides=[*overrides, *options.overrides]
    )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    runs, engine = contenders(settings, options.questions)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, list[int]] = {name: [] for name in runs}
    for number in track(range(options.rounds + 1), "rounds"):
        for name in random.Random(number).sample(list(runs), len(runs)):
            engine._llm.reset_prefix_cache()
            begun = time.perf_counter()
            count = runs[name]()
            if number:  # the first one warms up
                seconds[name].append(time.perf_counter() - begun)
                tokens[name].append(count)
    rates = {
        name: [t / s for t, s in zip(tokens[name], seconds[name], strict=True)] for name in runs
    }
    reference = rates["bare vLLM"]
    result = {
        name: {
            "tokens_per_s": round(median(values), 1),
            "range": [round(min(values), 1), round(max(values), 1)],
            # Each round's own ratio: whatever else the machine did hit both.
            "to_bare_vllm": round(median(a / b for a, b in zip(values, reference, strict=True)), 3),
            "tokens": tokens[name],
        }
        for name, values in rates.items()
    }
    options.output.write_text(
        json.dumps(
            {
                "machine": {**describe(), "vllm": require_vllm()},
                "settings": settings.model_dump(mode="json"),
                "questions": options.questions,
                "rounds": options.rounds,
                "contenders": result,
            },
            indent=1,
        )
        + "\n"
    )
    table = Table("contender", "tokens per second (range)", "to bare vLLM")
    for name, row in result.items():
        low, high = row["range"]
        table.add_row(
            name, f"{row['tokens_per_s']:.0f} ({low:.0f}-{high:.0f})", f"{row['to_bare_vllm']:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
