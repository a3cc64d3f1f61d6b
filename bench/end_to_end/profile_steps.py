"""What the steps of the default command spend their time on, operation by operation.

    .venv/bin/python bench/end_to_end/profile_steps.py                    a minute
    .venv/bin/python bench/end_to_end/profile_steps.py --beside f0a9d66   … an earlier commit, too

`ttrl train tiny-arithmetic` for `STEPS` steps on one thread, as torch's profiler sees it from
import to end: little besides sampling and updates. Operations of the same kind are added up; times
are an operation's own, without those that it calls. What is left of the wall clock is Python, and
the profiler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import ROOT, describe
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT / "scripts"))
from same_bits import checked_out, run

RESULTS = ROOT / "bench" / "results" / "profile.json"
STEPS = 3
SETTINGS = [
    f"max_steps={STEPS}",
    "threads=1",
    "data.held_out=none",
    "evaluation.samples=1",
]
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "head and loss (ttrl_kernels)": ("ttrl_kernels::",),
    "copies": (
        "copy_",
        "cat",
        "clone",
        "contiguous",
        "_to_copy",
        "index_select",
        "index",
        "gather",
    ),
    "optimizer": ("_fused_adamw_", "_foreach"),
}
"""Kind -> beginnings of the operations' names, or whole names in aten."""
LISTED = 12


def main() -> None:
    """Profile, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beside", metavar="COMMIT", help="an earlier commit, too")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        profiled(options.child)
        return
    found = {}
    with ExitStack() as stack:
        trees = {"this": ROOT}
        if options.beside:
            trees[options.beside] = stack.enter_context(checked_out(options.beside))
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                run(tree, [sys.executable, __file__, "--child", folder])
                found[name] = json.loads((Path(folder) / "profile.json").read_text())
            Console().print(table(name, found[name]))
    RESULTS.write_text(json.dumps({"machine": describe(), "trees": found}, indent=1) + "\n")


def profiled(folder: Path) -> None:
    """Train in this process, and leave its operations in ``folder``."""
    from torch.profiler import ProfilerActivity, profile

    from ttrl.cli import main as command_line

    sys.argv = ["ttrl", "train", "tiny-arithmetic", f"--run-dir={folder}/run"]
    sys.argv += [f"--set={setting}" for setting in SETTINGS]
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        try:
            command_line()
        except SystemExit as end:
            if end.code:
                raise
    operations = {
        event.key: {"calls": event.count, "ms": event.self_cpu_time_total / 1000}
        for event in seen.key_averages()
    }
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    (folder / "profile.json").write_text(json.dumps(summed(operations, lines)))


def summed(operations: dict[str, dict[str, float]], lines: list[str]) -> dict[str, Any]:
    """Add operations up by kind, per step."""
    kinds: dict[str, dict[str, float]] = {}
    for name, found in operations.items():
        kind = kinds.setdefault(kind_of(name), {"calls": 0, "ms": 0})
        for what in kind:
            kind[what] += found[what] / STEPS
    steps = [json.loads(line) for line in lines]
    longest = sorted(operations.items(), key=lambda item: -item[1]["ms"])[:LISTED]
    return {
        "profiled step_s": sum(
            step.get(f"time/{phase}_s", 0) for step in steps for phase in ("rollout", "update")
        )
        / STEPS,
        "by kind, per step": kinds,
        "longest, per step": {
            name: {what: value / STEPS for what, value in found.items()} for name, found in longest
        },
    }


def kind_of(name: str) -> str:
    """Name the kind of an operation."""
    short = name.removeprefix("aten::")
    for kind, names in KINDS.items():
        if short in names or any(
            n.endswith((":", "_foreach")) and short.startswith(n) for n in names
        ):
            return kind
    return "others"


def table(name: str, found: dict[str, Any]) -> Table:
    """Lay out the kinds."""
    shown = Table(
        "kind",
        "calls a step",
        "ms a step",
        title=f"{name}: {found['profiled step_s']:.2f} s a step while profiled",
    )
    kinds = sorted(found["by kind, per step"].items(), key=lambda item: -item[1]["ms"])
    for kind, values in kinds:
        shown.add_row(kind, f"{values['calls']:.0f}", f"{values['ms']:.0f}")
    return shown


if __name__ == "__main__":
    main()
