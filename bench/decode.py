"""How near a decoding step of the embedded engine comes to what the machine can do.

    .venv/bin/python bench/decode.py                              the embedded model
    .venv/bin/python bench/decode.py --model SmolLM2-135M=FOLDER  another one as well, in two types

A step reads all weights once and multiplies each with a row per branch. So it is timed beside the
bare products, `torch.nn.functional.linear` of the model's own matrices with as many rows, and
beside a bare read, the sum of a large buffer: one after the other, several times over, medians.
What is left to the step is attention, everything elementwise, and Python; sampling a token from
the logits is timed apart. All branches differ here. The embedded task is measured whole as well,
16 questions with 64 answers each, where most of them begin alike. Writes
``bench/results/decode.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import ROOT, describe
from rich.console import Console
from rich.table import Table
from torch.nn.functional import linear
from transformers import PreTrainedModel

from ttrl.data.questions import load_questions
from ttrl.models.pretrained import load_model, load_tokenizer
from ttrl.rollout.engines.decoding import Decoding, share_prompts
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.sampling import draw, sampling_logprobs, voting
from ttrl.settings import ModelSettings
from ttrl.settings.recipe import load_settings

PROMPT, BEFORE = 64, 8
"""Tokens of the prompt, and of each branch before the first step that is timed."""

BUFFER = 1 << 29
"""Bytes that are read: no cache holds them."""


def seconds(act: Callable[[], object]) -> float:
    """Time it once."""
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def steps(
    model: PreTrainedModel, sliding: list[bool] | None, rows: int, rounds: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a decoding step of so many branches, and the sampling of their next tokens."""
    rng = torch.Generator().manual_seed(0)
    words = model.config.vocab_size
    prompt = torch.randint(words, (PROMPT,), generator=rng).tolist()
    state = Decoding(model, [prompt], BEFORE + rounds + 2, sliding)
    uniform_B = torch.rand(rows, generator=rng, dtype=torch.float64)
    parent_B = torch.zeros(rows, dtype=torch.int64)

    def step() -> None:
        nonlocal parent_B
        state.advance(parent_B, torch.randint(words, (rows,), generator=rng))
        parent_B = torch.arange(rows)

    def sampling() -> None:
        draw(sampling_logprobs(state.logits_BV, 1.0, 1.0), uniform_B)

    for _ in range(BEFORE):
        step()
    return step, sampling


@torch.inference_mode()
def measure(model: PreTrainedModel, rows: int, rounds: int) -> dict[str, float]:
    """Time a step of ``rows`` branches, its parts and what it is compared with, in turns."""
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        size: torch.randn(rows, size, dtype=model.dtype) for size in {m.shape[1] for m in matrices}
    }
    buffer = torch.ones(BUFFER // 4)
    step, sampling = steps(model, share_prompts(model), rows, rounds)
    acts: dict[str, Callable[[], object]] = {
        "step": step,
        "sampling": sampling,
        "products": lambda: [linear(inputs[m.shape[1]], m) for m in matrices],
        "read": buffer.sum,
    }
    times: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(rounds + 1):
        for name, act in acts.items():
            spent = seconds(act)
            if turn:
                times[name].append(spent)
    found = {name: median(values) for name, values in times.items()}
    size = sum(m.numel() * m.element_size() for m in matrices)
    work = 2 * rows * sum(m.numel() for m in matrices)
    return {
        "rows": rows,
        "tokens_per_second": rows / (found["step"] + found["sampling"]),
        **{f"{name}_ms": 1e3 * value for name, value in found.items()},
        "step_to_products": median(
            a / b for a, b in zip(times["step"], times["products"], strict=True)
        ),
        "weights_mb": size / 1e6,
        "step_gb_s": size / found["step"] / 1e9,
        "products_gb_s": size / found["products"] / 1e9,
        "read_gb_s": BUFFER / found["read"] / 1e9,
        "step_gflop_s": work / found["step"] / 1e9,
        "products_gflop_s": work / found["products"] / 1e9,
    }


def embedded_task(rounds: int) -> dict[str, float]:
    """Sample a step of the embedded task, whole."""
    settings = load_settings("tiny-arithmetic")
    tokenizer = load_tokenizer(settings.model)
    questions = load_questions(settings.data.train, settings.data, tokenizer).questions[:16]
    model, params = load_model(settings.model, torch.float32), voting(settings, "rollout", 0)
    engine = TransformersEngine(model, tokenizer, settings.rollout.batch_size)
    fed: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    times, tokens = [], 0
    for _ in range(rounds + 1):
        fed.clear()
        begun = time.perf_counter()
        groups = dict(engine.sample(questions, params))
        times.append(time.perf_counter() - begun)
        tokens = sum(len(c.token_ids) for group in groups.values() for c in group)
    spent = median(times[1:])
    return {
        "batch_size": engine.batch_size,
        "tokens": tokens,
        "tokens_computed": sum(fed),
        "seconds": spent,
        "tokens_per_second": tokens / spent,
    }


def show(name: str, results: list[dict[str, float]]) -> None:
    """Print the figures of a model."""
    table = Table(title=name)
    columns = {"rows": "rows", "tokens_per_second": "tokens/s", "step_ms": "step, ms"}
    columns |= {"sampling_ms": "sampling, ms", "products_ms": "bare products, ms"}
    columns |= {"step_gb_s": "GB/s", "products_gb_s": "bare", "read_gb_s": "bare read"}
    columns |= {"step_gflop_s": "GFLOP/s", "products_gflop_s": "bare"}
    for title in columns.values():
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(*(f"{result[key]:.4g}" for key in columns))
    Console().print(table)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Decoding steps beside bare products.")
    parser.add_argument("--model", metavar="NAME=FOLDER", help="a model beside the embedded one")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "decode.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    asked = [("tiny-base", "tiny-base", "float32", [*arguments.rows, 1024])]
    if arguments.model:
        name, _, folder = arguments.model.partition("=")
        asked += [(name, folder, kind, arguments.rows) for kind in ("float32", "bfloat16")]
    models: dict[str, Any] = {}
    for name, path, kind, rows in asked:
        model = load_model(ModelSettings(path=path), getattr(torch, kind)).requires_grad_(False)
        models[f"{name}, {kind}"] = [measure(model, n, arguments.rounds) for n in rows]
        show(f"{name}, {kind}", models[f"{name}, {kind}"])
    task = embedded_task(arguments.rounds)
    Console().print(f"embedded task: {task['tokens_per_second']:.0f} tokens/s")
    result = {
        "machine": describe(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "prompt_tokens": PROMPT,
        "own_tokens": BEFORE,
        "models": models,
        "embedded_task": task,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
