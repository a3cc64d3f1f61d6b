"""What torch.cuda answers on the pretended GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

TOTAL, FREE = 40 * 2**30, 30 * 2**30
"""Bytes of its memory, and of those that are free; nothing is counted."""

PEAK = 5 * 2**30

PROPERTIES = SimpleNamespace(
    name="Pretended GPU",
    total_memory=TOTAL,
    major=8,
    minor=0,
    multi_processor_count=108,
    warp_size=32,
    regs_per_multiprocessor=65536,
    shared_memory_per_multiprocessor=167936,
    max_threads_per_multi_processor=2048,
    is_integrated=0,
    is_multi_gpu_board=0,
)
"""Those of an A100 where anybody asks."""


class Stream:
    """The one stream; everything on it is done when it is asked for."""

    cuda_stream = stream_id = device_index = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def nothing(self, *_: Any, **__: Any) -> None:
        """There is nothing to wait for."""

    wait_stream = wait_event = synchronize = nothing

    def query(self) -> bool:
        """Whether all is done."""
        return True

    def record_event(self, event: Event | None = None) -> Event:
        """A moment that has passed."""
        return event or Event()


class Event(Stream):
    """A moment that has passed."""

    record = wait = Stream.nothing

    def elapsed_time(self, _: Event) -> float:
        """Milliseconds."""
        return 0.0


counted: dict[str, int] = {}
"""How often what leaves no other trace was called, by name."""


def _counting(name: str) -> Callable[..., None]:
    def call(*_: Any, **__: Any) -> None:
        counted[name] = counted.get(name, 0) + 1

    return call


pinned: set[int] = set()
"""Addresses of memory of the host that the GPU may copy from and to directly."""


def _pin(address: int, size: int, flags: int) -> int:
    pinned.add(address)
    counted["pinned"] = counted.get("pinned", 0) + 1
    return 0


def _unpin(address: int) -> int:
    pinned.remove(address)
    return 0


def _refuse_error(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA error {code}")


@contextlib.contextmanager
def _stream(_: Any) -> Iterator[None]:
    yield


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def answer() -> None:
    """Replace the questions about devices in torch.cuda, for good."""
    the_stream = Stream()
    answers: dict[str, Any] = {
        "is_available": _constant(True),
        "is_initialized": _constant(True),
        "is_bf16_supported": _constant(True),
        "_lazy_init": _constant(None),
        "_exchange_device": _constant(0),
        "_maybe_exchange_device": _constant(0),
        "device_count": _constant(1),
        "current_device": _constant(0),
        "set_device": _counting("set_device"),
        "get_device_name": _constant(PROPERTIES.name),
        "get_device_capability": _constant((PROPERTIES.major, PROPERTIES.minor)),
        "get_device_properties": _constant(PROPERTIES),
        "get_arch_list": _constant(["sm_80"]),
        "mem_get_info": _constant((FREE, TOTAL)),
        "memory_allocated": _constant(0),
        "memory_reserved": _constant(0),
        "max_memory_allocated": _constant(PEAK),
        "max_memory_reserved": _constant(PEAK),
        "memory_stats": _constant({}),
        "reset_peak_memory_stats": _counting("reset_peak_memory_stats"),
        "empty_cache": _counting("empty_cache"),
        "synchronize": _constant(None),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": _counting("set_rng_state"),
        "manual_seed": _constant(None),
        "manual_seed_all": _constant(None),
        "cudart": _constant(SimpleNamespace(cudaHostRegister=_pin, cudaHostUnregister=_unpin)),
        "check_error": _refuse_error,
        "current_stream": _constant(the_stream),
        "default_stream": _constant(the_stream),
        "Stream": Stream,
        "Event": Event,
        "stream": _stream,
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, value)
    torch.cuda.memory.mem_get_info = answers["mem_get_info"]
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = _constant(0)
    torch.version.cuda = "13.0"
    _pretend_nccl()


def _pretend_nccl() -> None:
    """NCCL's process groups are gloo's, which takes the memory of the pretended GPU."""
    import torch.distributed as dist

    start = dist.init_process_group

    def init_process_group(backend: str | None = None, **options: Any) -> None:
        if backend != "cpu:gloo,cuda:nccl":
            raise RuntimeError(f"backend is {backend!r}: with a GPU, expected one for each device")
        counted["nccl"] = counted.get("nccl", 0) + 1
        start("cpu:gloo,cuda:gloo", **options)

    dist.init_process_group = init_process_group
    os.environ.pop("DS_ACCELERATOR", None)
