"""Time, memory and error of the contenders on one case, in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from contenders import CONTENDERS, Case, Contender, Shape, Truth, floor, make_case, solve
from torch.profiler import ProfilerActivity, profile

FLOOR = "bare matmuls"
LIMIT = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest error, relative to the truth as a whole, at which a speed is still shown."""


class Failed(Exception):
    """Why a contender has no numbers."""


def measure(
    shape: Shape, *, backward: bool, only: tuple[str, ...], device: str
) -> tuple[Callable[[], None], dict[str, dict[str, Any]]]:
    """A function that times every contender once, and the rows of the table that it fills.

    Every contender is checked and warmed up first; one that fails gets its reason as its row and
    no speed. Calling the function several times interleaves them, so that whatever else the
    machine does hits all of them alike. `finish` turns the times into medians.
    """
    gc.freeze()  # a collection then only looks at what came since, and takes no time
    case = make_case(shape, device)
    truth = solve(case)
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, contender in CONTENDERS.items():
        if name not in only or (contender.logp is None and not backward):
            continue
        try:
            call = _call(contender, case, backward, device)
            error = _error(call, truth, backward)
            if not error <= LIMIT[shape.dtype]:
                raise Failed(f"wrong: error {error:.1e} against float64")
            rows[name] = {"error": error, "extra_mb": _extra(call, device) / 1e6, **_no_times()}
            calls[name] = call
        except Failed as reason:
            rows[name] = {"failed": str(reason)}
        _free(device)
    del truth
    rows[FLOOR] = {**_no_times()}
    calls[FLOOR] = floor(case, backward)
    calls[FLOOR]()

    def once() -> None:
        for name, call in calls.items():
            wall, processor = _time(call, device)
            rows[name]["seconds"].append(wall)
            rows[name]["cpu_seconds"].append(processor)

    return once, rows


def finish(rows: dict[str, dict[str, Any]]) -> None:
    """Medians in milliseconds, and the ratio to the bare matmuls, also in processor time.

    On a CPU that is shared, processor time says what a call costs and wall time also whom the
    system let run; processor time alone would hide a part that runs on one thread only.
    """
    gc.unfreeze()
    for row in rows.values():
        if "seconds" in row:
            row["ms"] = 1e3 * statistics.median(row["seconds"])
    for row in rows.values():
        if "ms" in row:
            row["ratio"] = row["ms"] / rows[FLOOR]["ms"]
            cpu, floor_cpu = (statistics.median(r["cpu_seconds"]) for r in (row, rows[FLOOR]))
            row["cpu_ratio"] = cpu / floor_cpu


def _call(
    contender: Contender, case: Case, backward: bool, device: str
) -> Callable[[], tuple[torch.Tensor, ...]]:
    if contender.where not in (None, device):
        raise Failed(f"runs on {contender.where} only")

    def forward() -> tuple[torch.Tensor, ...]:
        assert contender.logp is not None
        with torch.no_grad():
            return (contender.logp(case),)

    def both() -> tuple[torch.Tensor, ...]:
        case.hidden.grad = case.weight.grad = None
        contender.loss(case).backward()
        out = case.hidden.grad, case.weight.grad
        case.hidden.grad = case.weight.grad = None
        return out

    def guarded() -> tuple[torch.Tensor, ...]:
        try:
            return both() if backward else forward()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise Failed("out of memory") from None
        except (ImportError, AttributeError) as error:
            raise Failed(f"not installed: {error}") from None
        except Exception as error:  # another project's failure is a line of the table
            reason = str(error).strip().partition("\n")[0]
            raise Failed(f"{type(error).__name__}: {reason[:80]}") from None

    return guarded


def _error(call: Callable[[], tuple[torch.Tensor, ...]], truth: Truth, backward: bool) -> float:
    """Of the log-probs, or the larger one of the two gradients."""
    expected = (truth.hidden, truth.weight) if backward else (truth.logp,)
    pairs = zip(call(), expected, strict=True)
    return max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)


def _extra(call: Callable[[], tuple[torch.Tensor, ...]], device: str) -> int:
    """Most bytes in use at once beyond the inputs and what is returned."""
    if device == "cuda":
        _free(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in out)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        out = call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    used = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    return most - sum(x.nbytes for x in out)


def _no_times() -> dict[str, Any]:
    return {"seconds": [], "cpu_seconds": []}


def _time(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall seconds, and processor seconds of all threads."""
    _free(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    out = call()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start, time.process_time() - start_cpu
    del out
    return seconds


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
