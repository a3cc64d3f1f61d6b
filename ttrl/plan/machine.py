"""The machine that a run is planned for, and all that is assumed about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ttrl.config import did_you_mean
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
    """GPUs of one kind in one node. The rates are those of an A100-SXM4-40GB."""

    gpus: int
    """GPUs, one process each."""
    memory_gib: float
    """Memory of one GPU as its maker states it, GiB."""
    usable_share: float = 0.99
    """Share of it that a program sees: an A100-40GB reports 39.6 GiB."""
    context_gib: float = 0.6
    """CUDA context and the libraries' workspaces, GiB."""
    nccl_gib: float = 0.9
    """Buffers of the communication between GPUs, GiB; none on a single GPU."""
    asleep_gib: float = 1.0
    """What a sleeping vLLM keeps: CUDA graphs and its own workspaces, GiB."""
    graphs_gib: float = 0.7
    """What vLLM's CUDA graphs take while it is awake, GiB."""
    fragmentation: float = 0.05
    """Share of what comes and goes that the allocator loses between blocks."""
    tflops: float = 312.0
    """bfloat16 matrix products at their peak, 10^12 operations per second."""
    hbm_gb_s: float = 1555.0
    """Memory bandwidth, 10^9 bytes per second."""
    link_gb_s: float = 240.0
    """What a GPU receives from the others in a collective, 10^9 bytes per second."""
    pcie_gb_s: float = 20.0
    """Between GPU and pinned host memory, 10^9 bytes per second."""
    train_utilization: float = 0.4
    """Share of the peak that training reaches, recomputed work included."""
    decode_bandwidth: float = 0.75
    """Share of the memory bandwidth that decoding reaches."""
    layer_us: float = 20.0
    """What decoding one token costs in each layer whatever the sizes, in microseconds."""
    reduction_us: float = 20.0
    """Tensor parallelism: the same for a sum over an engine's GPUs, of which a layer has two."""
    answer_share: float = 0.5
    """Mean length of an answer, as a share of rollout.max_new_tokens."""
    prompt_tokens: float = 200.0
    """Mean length of a prompt."""

    def __post_init__(self) -> None:
        """Raise a UserError for a number that no machine has."""
        for name in (f.name for f in fields(self)):
            value, most = getattr(self, name), 1.0 if name in SHARES else MOST
            if not LEAST <= value <= most:  # nor what is no number
                options = {"gpus": "--gpus ", "memory_gib": "--gpu-memory "}
                raise UserError(
                    f"{options.get(name, f'--machine {name}=')}{value:g}: expected a number from "
                    f"{LEAST:g} to {most:g}"
                )

    @property
    def usable(self) -> int:
        """Bytes of one GPU that a program can have."""
        return int(self.memory_gib * self.usable_share * GIB)

    @property
    def context(self) -> int:
        """Bytes that no allocator of ours hands out."""
        return int((self.context_gib + (self.nccl_gib if self.gpus > 1 else 0)) * GIB)

    def changed(self, changes: Iterable[str]) -> Machine:
        """This machine with other assumptions, each "name=number".

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
        return replace(self, **values)  # type: ignore[arg-type]  # floats only, see names
