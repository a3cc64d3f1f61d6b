"""A vLLM of numbers: it keeps the account of a GPU's memory, and refuses as the real one does.

It is what `ttrl.rollout.engines.vllm_engine` sees of vLLM 0.32 on CUDA. What of the real one each
part repeats is named there, by its path in vLLM's package.
"""

from __future__ import annotations

import importlib.metadata
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from ttrl.rollout.engines import vllm_contract, vllm_engine

LOGPROB, WRONG = -0.25, -9.0
"""Of every token, by the weights that were pushed, and by any others."""
TOKEN = 65
"""Every answer is this one, and a stop token."""


class Card:
    """A GPU's memory, and what happens to it."""

    def __init__(self, total: int) -> None:
        """Nothing is taken."""
        self.total = total
        self.held: dict[str, int] = {}
        self.events: list[str] = []
        """What happened, each once however often it was repeated."""

    @property
    def free(self) -> int:
        return self.total - sum(self.held.values())

    def happens(self, event: str) -> None:
        if self.events[-1:] != [event]:
            self.events.append(event)

    def take(self, name: str, size: int) -> None:
        """Raises torch's own error if there is not so much."""
        if size > self.free:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.held[name] = size

    def give(self, name: str) -> None:
        self.held.pop(name, None)

    def pass_through(self, size: int) -> None:
        """Take and give back."""
        self.take("passing", size)
        self.give("passing")


@dataclass(frozen=True)
class Sizes:
    """Bytes that the engine takes."""

    weights: int
    itself: int
    """What it keeps while it sleeps."""
    prefill: int
    """At the peak of its profile run, and of sampling."""
    reload: int
    """What passes through in a push."""


@dataclass
class AllocationData:
    """device_allocator/__init__.py"""

    handle: tuple[int, int, int, int]
    tag: str
    cpu_backup_tensor: Any = None
    is_asleep: bool = False


class CuMemAllocator:
    """device_allocator/cumem.py: what it has given back, torch still counts."""

    instance: ClassVar[CuMemAllocator | None] = None

    def __init__(self, card: Card) -> None:
        self.card = card
        self.pointer_to_data: dict[int, AllocationData] = {}

    def allocate(self, tag: str, size: int) -> None:
        self.card.take(tag, size)
        pointer = len(self.pointer_to_data)
        self.pointer_to_data[pointer] = AllocationData((0, size, pointer, 0), tag)

    def sleep(self) -> None:
        for data in self.pointer_to_data.values():
            self.card.give(data.tag)
            data.is_asleep = True

    def wake_up(self, tags: Sequence[str]) -> None:
        for data in self.pointer_to_data.values():
            if data.is_asleep and data.tag in tags:
                if data.handle[1] > self.card.free:  # cumem_allocator.cpp
                    raise RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:62")
                self.card.held[data.tag] = data.handle[1]
                data.is_asleep = False


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[Any]
    finished: bool


@dataclass
class CompletionOutput:
    token_ids: Sequence[int]
    logprobs: Any
    finish_reason: str | None


@dataclass
class FlatLogprobs:
    """Of the sampled tokens alone, as nobody asks for others here."""

    logprobs: list[float]
    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_indices = list(range(len(self.logprobs)))


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    seed: int | None = None
    logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    output_kind: Any = None


class RequestOutputKind:
    CUMULATIVE = 0
    FINAL_ONLY = 2


class EngineArgs:
    def __init__(
        self, model: str, revision: Any, dtype: str, seed: int, skip_tokenizer_init: bool,
        generation_config: str, load_format: str, logprobs_mode: str, max_logprobs: int,
        enable_prefix_caching: bool, max_model_len: int, max_num_seqs: int, block_size: int,
        enforce_eager: bool, hf_overrides: Any, enable_chunked_prefill: bool,
        max_num_batched_tokens: int, enable_sleep_mode: bool, gpu_memory_utilization: float,
        distributed_executor_backend: str, tensor_parallel_size: int,
    ) -> None: ...  # fmt: skip


class InprocClient:
    """v1/engine/core_client.py"""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def shutdown(self, timeout: float | None = None) -> None:
        self.llm.closed = True
        self.llm.card.happens("close")


class LLMEngine:
    """v1/engine/llm_engine.py"""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.engine_core = InprocClient(llm)
        self.waiting: dict[str, SamplingParams] = {}

    def add_request(self, request_id: str, prompt: Mapping[str, Any], params: Any) -> None:
        self.waiting[request_id] = params

    def step(self) -> list[RequestOutput]:
        """All that waits is answered at once."""
        llm = self.llm
        if (
            llm.asleep
        ):  # its scheduler is paused (v1/engine/core.py): the caller would wait for ever
            raise AssertionError("sampling from an engine that sleeps")
        llm.card.happens("rollout")
        llm.card.pass_through(llm.sizes.prefill)
        logprob = LOGPROB if llm.filled else WRONG
        outputs = [
            RequestOutput(request_id, [_completion(params, logprob)] * params.n, finished=True)
            for request_id, params in self.waiting.items()
        ]
        self.waiting = {}
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.waiting.pop(request_id, None)


def _completion(params: SamplingParams, logprob: float) -> CompletionOutput:
    if params.max_tokens == 1:
        return CompletionOutput((TOKEN,), FlatLogprobs([logprob]), "length")
    return CompletionOutput(
        (TOKEN, params.stop_token_ids[0]), FlatLogprobs([logprob, logprob]), "stop"
    )


class LLM:
    """entrypoints/llm.py and, below it, v1/worker/gpu_worker.py."""

    card: Card
    sizes: Sizes

    def __init__(self, **options: Any) -> None:
        self.options = options
        card, sizes = self.card, self.sizes
        card.happens("start")
        # request_memory in v1/worker/utils.py
        requested = math.ceil(card.total * options["gpu_memory_utilization"])
        if card.free < requested:
            raise ValueError(
                f"Free memory on device cuda:0 ({card.free}/{card.total} GiB) on startup is less "
                f"than desired GPU memory utilization ({options['gpu_memory_utilization']}, "
                f"{requested} GiB). Decrease GPU memory utilization or reduce GPU memory used by "
                "other processes."
            )
        self.allocator = CuMemAllocator.instance = CuMemAllocator(card)
        self.allocator.allocate("weights", sizes.weights)
        card.take("vLLM itself", sizes.itself)
        # determine_available_memory: what was consumed, and the peak of the profile run
        card.pass_through(sizes.prefill)
        cache = requested - sizes.weights - sizes.itself - sizes.prefill
        if cache <= 0:
            raise ValueError("No available memory for the cache blocks.")
        self.allocator.allocate("kv_cache", cache)
        self.llm_engine = LLMEngine(self)
        self.asleep: set[str] = set()
        self.filled = self.closed = False

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        assert level == 2, "level 1 would copy the weights to the host"
        if "weights" in self.asleep:  # Executor.sleep in v1/executor/abstract.py
            return
        self.card.happens("sleep")
        self.allocator.sleep()
        self.asleep = {"weights", "kv_cache"}
        self.filled = False

    def wake_up(self, tags: list[str] | None = None) -> bool:
        tags = tags or ["weights", "kv_cache"]
        if not set(tags) <= self.asleep:  # Executor.wake_up: a warning, and nothing
            return not self.asleep
        self.card.happens("wake " + {"weights": "weights", "kv_cache": "cache"}[tags[0]])
        self.allocator.wake_up(tags)
        self.asleep -= set(tags)
        return not self.asleep

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[None]:  # fmt: skip
        assert method == "reload_weights"
        self.card.happens("push")
        if "weights" in self.asleep:  # it writes where nothing is mapped
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for _ in (kwargs or {})["weights_iterator"]:
            self.card.pass_through(self.sizes.reload)
        self.filled = True
        return [None]

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        return not self.llm_engine.waiting


class Worker:
    def reload_weights(self, *args: Any, **kwargs: Any) -> None: ...


class GPUModelRunner:
    def reload_weights(self, weights_iterator: Any = None) -> None: ...


MODULES: dict[str, dict[str, Any]] = {
    "vllm": {
        "SamplingParams": SamplingParams,
        "RequestOutput": RequestOutput,
        "CompletionOutput": CompletionOutput,
    },
    "vllm.engine.arg_utils": {"EngineArgs": EngineArgs},
    "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
    "vllm.logprobs": {"FlatLogprobs": FlatLogprobs},
    "vllm.device_allocator": {"AllocationData": AllocationData},
    "vllm.device_allocator.cumem": {"CuMemAllocator": CuMemAllocator},
    "vllm.v1.engine.llm_engine": {"LLMEngine": LLMEngine},
    "vllm.v1.engine.core_client": {"InprocClient": InprocClient},
    "vllm.v1.worker.gpu_worker": {"Worker": Worker},
    "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": GPUModelRunner},
    "vllm.v1.worker.gpu.model_runner": {"GPUModelRunner": GPUModelRunner},
}


def install(monkeypatch: pytest.MonkeyPatch, card: Card, sizes: Sizes) -> type[LLM]:
    """Let ``import vllm`` give this one, on a machine that has this card and no other."""
    llm = type("LLM", (LLM,), {"card": card, "sizes": sizes, "__init__": LLM.__init__})
    contents = {**MODULES, "vllm": {**MODULES["vllm"], "LLM": llm}}
    for name in [n for path in contents for n in _parents(path)]:
        module = ModuleType(name)
        module.__path__ = []  # a package
        vars(module).update(contents.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    for name in [n for path in contents for n in _parents(path)]:
        parent, _, own = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], own, sys.modules[name], raising=False)
    monkeypatch.setattr(CuMemAllocator, "instance", None)
    monkeypatch.setattr(vllm_contract, "_installed", lambda: {"vllm"})
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.32.0" if name == "vllm" else version(name)
    )
    monkeypatch.setattr(vllm_engine, "torch", _Torch(card))
    monkeypatch.setattr(vllm_engine, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (card.free, card.total))
    return llm


class _Torch:
    """Torch, on a machine with a GPU: the engine asks it for nothing else."""

    def __init__(self, card: Card) -> None:
        self.cuda = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
