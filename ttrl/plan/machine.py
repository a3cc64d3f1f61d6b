"""The machine that a run is planned for, and all that is assumed about it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ttrl.settings.errors import did_you_mean
from ttrl.types import UserError

GIB = 2**30

SHARES = (
    "usable_share",
    "fragmentation",
    "train_utilization",
    "decode_bandwidth",
    "answer_share",
)
"""Fields that are at most 1. The others have room for any machine, and none for nonsense that
would divide by zero or overflow."""
LEAST, MOST = 0.001, 1e6


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind, in nodes that are alike. The rates are those of an A100-SXM4-40GB."""

    gpus: int
    """GPUs, one process each."""
    memory_gib: float
    """Memory of one GPU as its maker states it, GiB."""
    gpus_per_node: int = 8
    """GPUs that share a host, at most; an engine's are all in one node."""
    host_gib: float | None = None
    """Memory of each node's host, GiB; None: whatever the run takes."""
    usable_share: float = 0.985
    """Share of a GPU's memory that a program sees: an A100-40GB reports 39.4 GiB."""
    context_gib: float = 0.6
    """CUDA context and the libraries' workspaces, GiB."""
    nccl_gib: float = 0.9
    """Buffers of the communication between GPUs, GiB; none on a single GPU."""
    asleep_gib: float = 1.0
    """What vLLM holds besides weights and KV cache, and keeps while it sleeps: CUDA graphs and its
    own workspaces, GiB."""
    fragmentation: float = 0.05
    """Share that the allocator loses between blocks: of what comes and goes, and of the reference
    model, which is cut into shares tensor by tensor."""
    tflops: float = 312.0
    """bfloat16 matrix products at their peak, 10^12 operations per second."""
    hbm_gb_s: float = 1555.0
    """Memory bandwidth, 10^9 bytes per second."""
    link_gb_s: float = 240.0
    """What a GPU receives from the others of its node in a collective, 10^9 bytes per second."""
    node_link_gb_s: float = 25.0
    """What a node receives from the others, for each of its GPUs, 10^9 bytes per second: one
    adapter of 200 Gbit/s each."""
    pcie_gb_s: float = 20.0
    """Bandwidth between GPU and pinned host memory, 10^9 bytes per second."""
    host_gb_s: float = 200.0
    """Memory bandwidth of a host, for all its GPUs together, 10^9 bytes per second."""
    train_utilization: float = 0.4
    """Share of the peak that training reaches, recomputed work included."""
    decode_bandwidth: float = 0.75
    """Share of the memory bandwidth that decoding reaches."""
    layer_us: float = 20.0
    """What decoding one token costs in each layer whatever the sizes, in microseconds."""
    reduction_us: float = 20.0
    """What a sum over an engine's GPUs costs whatever the size, in microseconds; with tensor
    parallelism each layer has two."""
    answer_share: float = 0.5
    """Mean length of an answer, as a share of rollout.max_new_tokens."""
    prompt_tokens: float = 200.0
    """Mean length of a prompt."""

    def __post_init__(self) -> None:
        """Raise a UserError for a number that no machine has."""
        for name in (f.name for f in fields(self)):
            value, most = getattr(self, name), 1.0 if name in SHARES else MOST
            if value is None:
                continue
            if not LEAST <= value <= most:  # nor what is no number
                options = {"gpus": "--gpus ", "memory_gib": "--gpu-memory "}
                raise UserError(
                    f"{options.get(name, f'--machine {name}=')}{value:g}: expected a number from "
                    f"{LEAST:g} to {most:g}"
                )

    @property
    def nodes(self) -> int:
        """The number of hosts that the GPUs are in."""
        return math.ceil(self.gpus / self.gpus_per_node)

    @property
    def in_node(self) -> int:
        """The number of GPUs of a node."""
        return math.ceil(self.gpus / self.nodes)

    @property
    def usable(self) -> int:
        """Bytes of one GPU that a program can have."""
        return int(self.memory_gib * self.usable_share * GIB)

    @property
    def context(self) -> int:
        """Bytes that no allocator of ours hands out."""
        return int((self.context_gib + (self.nccl_gib if self.gpus > 1 else 0)) * GIB)

    def changed(self, changes: Iterable[str]) -> Machine:
        """Return this machine with other assumptions, each "name=number".

        Raises:
            UserError: for an unknown name, or a number that no machine has.
        """
        names = [f.name for f in fields(self) if f.name not in ("gpus", "memory_gib")]
        values: dict[str, float] = {}
        for change in changes:
            name, _, text = change.partition("=")
            if name not in names:
                hint = did_you_mean(name, names) or f": expected one of {', '.join(names)}"
                raise UserError(f"--machine {change!r}: unknown assumption{hint}")
            try:
                values[name] = float(text)
            except ValueError as error:
                raise UserError(f"--machine {change!r}: expected a number") from error
        if (count := values.get("gpus_per_node", 1)) % 1:
            raise UserError(f"--machine gpus_per_node={count:g}: expected a whole number")
        return replace(self, **values)  # type: ignore[arg-type]  # floats, see names
