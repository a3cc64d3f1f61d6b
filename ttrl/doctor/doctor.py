"""``ttrl doctor``: what is installed, what each part can do on this machine, and why not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable

import torch
import ttrl_kernels
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ttrl.doctor.selftests import SELF_TESTS, Lacks
from ttrl.rollout.engines.vllm_contract import require_vllm
from ttrl.system.gpus import device, driver, unseen_gpus
from ttrl.types import UserError

PACKAGES = (
    "ttrl",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
)
EXTRAS = {
    "deepspeed": "policy.backend = zero3",
    "peft": "lora.rank",
    "liger-kernel": "memory.liger_kernels",
    "flash-attn": "attention on GPUs, else PyTorch's own; the one part that needs nvcc",
}
"""What else may be installed, and what for."""


def report(console: Console) -> bool:
    """Print the report; return whether what there is works."""
    table = Table("part", "state", show_header=False, box=None)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        table.add_row(name, _version(name))
    for name, purpose in EXTRAS.items():
        table.add_row(name, f"{_version(name)} (for {purpose})")
    table.add_row("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    unseen = unseen_gpus()
    table.add_row("gpu", Text(_gpus() if unseen is None else f"FAILED: {unseen}"))
    chosen = ttrl_kernels.chosen_backend(device().type)
    for name, state in ttrl_kernels.backends().items():
        table.add_row(f"kernels: {name}", Text(state + (", chosen" if name == chosen else "")))
    table.add_row("rollouts: transformers", "available")
    table.add_row("rollouts: vllm", Text(_vllm()))
    healthy = unseen is None
    for name, test in SELF_TESTS.items():
        with console.status(f"self-test: {name}"):
            good, state = _tried(test)
        healthy &= good
        table.add_row(f"self-test: {name}", Text(state))  # no markup: an error may hold anything
    console.print(table, highlight=False)
    return healthy


def _tried(test: Callable[[], str]) -> tuple[bool, str]:
    """Say whether a self-test is no failure, and what to report of it."""
    try:
        return True, f"ok, {test()}"
    except Lacks as lack:
        return True, f"not run, needs {lack}"
    except Exception as error:  # reported, whatever it is: that is what a doctor is for
        return False, f"FAILED: {type(error).__name__}: {error}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _vllm() -> str:
    """Return vLLM's version, if a run could use it; it is not started here."""
    try:
        return f"available, vllm {require_vllm()}"
    except UserError as error:
        return f"not available: {error}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        why = "they are hidden from it, or there is none" if torch.version.cuda else "a CPU build"
        return f"none (for torch: {why}); training runs on the CPU"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in names)
    return f"{gpus}; CUDA {torch.version.cuda}, driver {driver() or 'unknown'}"
