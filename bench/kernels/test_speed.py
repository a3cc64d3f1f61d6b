"""The bench: one entry of pytest-benchmark per case, in each round of which all contenders run."""

from __future__ import annotations

import torch
from measure import finish, measure
from profiles import Run


def test_speed(run: Run, benchmark, keep) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    once, rows = measure(run.shape, backward=run.backward, only=run.contenders, device=device)
    benchmark.pedantic(once, rounds=run.rounds, iterations=1)
    finish(rows)
    mode = "forward+backward" if run.backward else "forward"
    keep({"case": f"{run.shape}, {mode}", "part": run.part, "rows": rows})
    benchmark.extra_info["rows"] = rows
    assert "ms" in rows["ttrl_kernels"], rows["ttrl_kernels"]["failed"]
