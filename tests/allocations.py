"""What a call allocates, by the allocator's own record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def allocations(call: Callable[[], Any]) -> tuple[int, int]:
    """(most bytes in use at once, bytes of the largest tensor), of memory of the CPU.

    What is allocated once, on first use, counts too: make a call before.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    used = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    return most, max(e.nbytes() for e in events)
