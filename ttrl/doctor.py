"""``ttrl doctor``: what is installed, what each part can do on this machine, and why not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import ttrl_kernels
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ttrl.policy.local import LocalPolicy
from ttrl.policy.model import load_policy_model
from ttrl.pretrained import load_tokenizer
from ttrl.recipe import load_settings
from ttrl.rollout.pool import make_pool
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.vllm_contract import require_vllm
from ttrl.types import Question, TrainSample, UserError

PACKAGES = ("ttrl", "torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")
EXTRAS = {
    "deepspeed": "policy.backend = zero3",
    "peft": "policy.lora_rank",
    "liger-kernel": "policy.liger_kernels",
    "flash-attn": "attention on GPUs; else PyTorch's own",
}
"""What else may be installed, and what for."""


def report(console: Console) -> bool:
    """Print the report; whether the self-tests passed."""
    table = Table("part", "state", show_header=False, box=None)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        table.add_row(name, _version(name))
    for name, purpose in EXTRAS.items():
        table.add_row(name, f"{_version(name)} (for {purpose})")
    table.add_row("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    table.add_row("gpu", _gpus())
    chosen = ttrl_kernels.chosen_backend("cuda" if torch.cuda.is_available() else "cpu")
    for name, state in ttrl_kernels.backends().items():
        table.add_row(f"kernels: {name}", Text(state + (", chosen" if name == chosen else "")))
    table.add_row("rollouts: transformers", "available")
    table.add_row("rollouts: vllm", Text(_vllm()))
    checks: dict[str, Callable[[], str]] = {
        "self-test: sample and train": _sample_and_train,
        "self-test: write here": _write,
    }
    healthy = True
    for name, check in checks.items():
        try:
            state = f"ok, {check()}"
        except Exception as error:  # reported, whatever it is: that is what a doctor is for
            healthy = False
            state = f"FAILED: {type(error).__name__}: {error}"
        table.add_row(name, Text(state))  # no markup: an error may hold anything
    console.print(table, highlight=False)
    return healthy


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _vllm() -> str:
    """Its version, if a run could use it; it is not started here."""
    try:
        return f"available, vllm {require_vllm()}"
    except UserError as error:
        return f"not available: {error}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"torch is built for CUDA {built}, but finds no GPU"
            if built
            else "torch is a CPU build"
        )
        return f"none ({why}); training runs on the CPU"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in names)


def _sample_and_train() -> str:
    """The embedded model answers one question and learns from it."""
    settings = load_settings("tiny-arithmetic")
    tokenizer = load_tokenizer(settings.model)
    policy = LocalPolicy(load_policy_model(settings.model), settings)
    pool = make_pool(settings, tokenizer)
    pool.refresh(policy)
    prompt = "What is 12 + 34?"
    question = Question("self-test", prompt, tuple(tokenizer.encode(prompt)))
    params = SamplingParams(n=2, temperature=1.0, max_new_tokens=8, stream=(0,))
    group = pool.sample([question], params)[0]
    samples = [
        TrainSample(question.id, question.prompt_ids, c.token_ids, c.logprobs, advantage)
        for c, advantage in zip(group.completions, (1.0, -1.0), strict=True)
    ]
    (result,) = policy.update(samples, rate=1e-5)
    return f"sampler and trainer agree on log-probs to {result.sampler_max_gap:.1e}"


def _write() -> str:
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".ttrl-doctor-"):
        return f"runs go to {Path('runs').resolve()}"
