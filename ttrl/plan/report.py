"""A plan on the screen."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ttrl.plan.choose import Plan
from ttrl.plan.host import host_memory
from ttrl.plan.machine import GIB, Machine
from ttrl.plan.per_agent import PARTS, label
from ttrl.plan.second_model import NAMES


def show(plan: Plan, console: Console) -> None:
    """Print what every GPU holds, how long a step takes, and what the plan would choose."""
    job = plan.job
    shape, machine = job.shape, job.machine
    console.print(
        f"{job.settings.model.path}: {shape.parameters / 1e9:.3f} B parameters, "
        f"{shape.kv_bytes_per_token() / 1024:.0f} KiB of keys and values per token",
        f"{machine.gpus} x {machine.memory_gib:g} GiB ({machine.usable / GIB:.1f} usable), "
        f"{_nodes(machine)}"
        f"{'zero3' if job.zero3 else 'local'}, {job.settings.rollout.engine}",
        sep="\n",
        highlight=False,
        markup=False,
    )
    console.print(memory_table(plan))
    console.print(_facts(plan), highlight=False, markup=False)
    console.print(_time(plan), highlight=False, markup=False)
    if plan.choices:
        console.print(choices_table(plan))


FIRST = (
    "CUDA, NCCL", "parameters", "reference model", "gradients", "master weights", "moments",
    *(f"{name} {item}" for name in NAMES.values() for item in PARTS),
    *map(label, PARTS),
    "reward model", "vLLM itself", "engine weights", "KV cache", "prefill, sampler",
)  # fmt: skip
"""Rows of the table: what stays; between them and fragmentation is what passes."""


def memory_table(plan: Plan) -> Table:
    """Make a table of GiB per GPU: a row for each kind of bytes, a column for each moment."""
    usable = plan.job.machine.usable
    table = Table(title="GiB on each GPU", box=SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for phase in plan.phases:
        table.add_column(phase.name, justify="right", overflow="fold")
    found = dict.fromkeys(name for phase in plan.phases for name in phase.items)
    passing = [name for name in found if name not in (*FIRST, "fragmentation")]
    for name in (*(n for n in FIRST if n in found), *passing, "fragmentation"):
        sizes = (phase.items.get(name, 0) / GIB for phase in plan.phases)
        table.add_row(name, *(f"{size:.2f}" if size else "" for size in sizes))
    table.add_section()
    totals = [
        Text(f"{phase.total / GIB:.2f}", style="bold red" if phase.total > usable else "bold")
        for phase in plan.phases
    ]
    table.add_row("total", *totals)
    left = [Text(f"{(usable - phase.total) / GIB:.2f}") for phase in plan.phases]
    table.add_row("left", *left)
    return table


def choices_table(plan: Plan) -> Table:
    """Make a table of what the settings say, and what the plan would choose."""
    title = f"fastest that fits: {plan.chosen_seconds:.0f} s per step"
    table = Table("setting", "this run", "chosen", title=title)
    settings = plan.job.settings.model_dump()
    for key, value in plan.choices.items():
        section, _, name = key.partition(".")
        style = "bold" if key in plan.changes else ""
        table.add_row(key, str(settings[section][name]), str(value), style=style)
    return table


def _nodes(machine: Machine) -> str:
    """Say how many nodes there are, where there are several."""
    if machine.nodes == 1:
        return ""
    return f"{machine.nodes} nodes with {machine.node_link_gb_s:g} GB/s per GPU between them, "


def _facts(plan: Plan) -> str:
    job = plan.job
    host = host_memory(job)
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in host.items())
    where = "of the host" if job.machine.nodes == 1 else "of each node's host"
    cache = f"KV cache of an engine: {plan.kv_tokens} tokens, {plan.kv_tokens // job.longest} of "
    taken = f"\nmemory {where}: {sum(host.values()) / GIB:.0f} GiB ({parts})" if host else ""
    return (
        f"{cache}the longest sequences ({job.longest} tokens)\n"
        f"logits: {job.chunk_rows} rows at a time{taken}"
    )


def _time(plan: Plan) -> str:
    machine = plan.job.machine
    parts = ", ".join(f"{name} {value:.1f}" for name, value in plan.seconds.items() if value)
    return (
        f"a step: {sum(plan.seconds.values()):.0f} s ({parts}) at {machine.tflops:g} TFLOP/s x "
        f"{machine.train_utilization:g}, {machine.hbm_gb_s:g} GB/s x {machine.decode_bandwidth:g}, "
        f"answers of {machine.answer_share:g} x {plan.job.settings.rollout.max_new_tokens} tokens"
    )
