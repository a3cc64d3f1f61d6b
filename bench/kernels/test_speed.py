"""The bench: one entry of pytest-benchmark per case, in each round of which all contenders run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import finish, measure
from profiles import Run
from pytest_benchmark.fixture import BenchmarkFixture


def test_speed(
    run: Run, benchmark: BenchmarkFixture, keep: Callable[[dict[str, Any]], None]
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    once, rows = measure(run.shape, backward=run.backward, only=run.contenders, device=device)
    benchmark.pedantic(once, rounds=run.rounds, iterations=1)
    finish(rows)
    mode = "forward+backward" if run.backward else "forward"
    keep({"case": f"{run.shape}, {mode}", "part": run.part, "rows": rows})
    benchmark.extra_info["rows"] = rows
    assert "ms" in rows["ttrl_kernels"], rows["ttrl_kernels"]["failed"]
