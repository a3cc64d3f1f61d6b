"""What this machine is, and how fast it copies and multiplies: what other numbers stand on."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import torch
from machine import describe
from record import Record, part_parser

GIB = 2**30
PACKAGES = (
    "triton",
    "deepspeed",
    "vllm",
    "peft",
    "liger-kernel",
    "flash-attn",
    "accelerate",
    "cut-cross-entropy",
    "trl",
    "verl",
)
QUERY = "name,driver_version,memory.total,memory.used,power.limit,clocks.max.sm,clocks.max.mem"


def main() -> None:
    """Facts first, then rates."""
    options = part_parser(__doc__).parse_args()
    record = Record(options.output)
    record["machine"] = describe()
    record["packages"] = {name: _version(name) for name in PACKAGES}
    record["cuda_of_torch"] = torch.version.cuda
    record["nvidia_smi"] = smi = _nvidia_smi()
    if options.dry_run:
        record["rates"] = rates("cpu", 64, 2**20)
        return
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device; nvidia-smi: {smi}")
    properties = torch.cuda.get_device_properties(0)
    record["gpu"] = {
        "name": properties.name,
        "stated_gib": stated_gib(properties.name),
        "seen_gib": properties.total_memory / GIB,
        "capability": torch.cuda.get_device_capability(0),
        "multiprocessors": properties.multi_processor_count,
        "l2_mb": properties.L2_cache_size / 1e6,
        "count": torch.cuda.device_count(),
    }
    record["rates"] = rates("cuda", 8192, 2**32)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    # cuBLAS's workspace is still reserved, and belongs to what the allocator hands out.
    record["context_gib"] = (total - free - torch.cuda.memory_reserved()) / GIB


def rates(device: str, size: int, nbytes: int) -> dict[str, float]:
    """Matrix products in 10^12 operations per second, copies in 10^9 bytes per second.

    A copy on the device counts what it reads and what it writes; one between host and device its
    bytes once, the slower of both ways.
    """
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    found = {"matmul_tflops": 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out)) / 1e12}
    source = torch.randint(256, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = 2 * nbytes / seconds(lambda: target.copy_(source)) / 1e9
    if device == "cuda":
        host = torch.empty(nbytes // 4, dtype=torch.uint8, pin_memory=True)
        near = source[: len(host)]
        ways: list[Callable[[], object]] = [lambda: host.copy_(near), lambda: near.copy_(host)]
        found["host_copy_gb_s"] = min(len(host) / seconds(way) / 1e9 for way in ways)
    return found


def seconds(call: Callable[[], object], rounds: int = 10) -> float:
    """Median of some calls, after three that warm up."""
    times = []
    for _ in range(rounds + 3):
        _synchronize()
        begun = time.perf_counter()
        call()
        _synchronize()
        times.append(time.perf_counter() - begun)
    return median(times[3:])


def stated_gib(name: str) -> float | None:
    """What a GPU's own name says of its memory; None where it says nothing."""
    found = re.search(r"(\d+) ?GB", name)
    return float(found[1]) if found else None


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _nvidia_smi() -> dict[str, str] | str:
    """Its facts of the first GPU, or why there are none."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return dict(zip(QUERY.split(","), done.stdout.strip().split(", "), strict=True))


if __name__ == "__main__":
    main()
