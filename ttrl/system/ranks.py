"""The processes of one run: each is a rank, started by torchrun or the deepspeed launcher.

All of them run the same program on the same questions, and split only what is expensive: sampling
and judging (by question) and the update (by micro-batch). What they find is gathered, so that
every rank takes the same decisions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ttrl.system.launch import end_with_launcher, keep_segments_whole, launched
from ttrl.types import UserError

T = TypeVar("T")
K = TypeVar("K")

TIMEOUT = timedelta(days=30)
"""The time that a rank waits for the others: a watchdog knows better what is too long."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those of the run."""

    rank: int = 0
    """Number of this process, from 0; rank 0 writes files and talks to the user."""
    count: int = 1
    """Number of processes, on all nodes."""
    group: Any = None
    """Torch's process group that the ranks talk in; None: the one of all of them."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    def gather(self, mine: T) -> list[T]:
        """Return every rank's object, in the order of ranks, on all of them."""
        if self.count == 1:
            return [mine]
        found: list[T | None] = [None] * self.count
        dist.all_gather_object(found, mine, group=self.group)
        return found  # type: ignore[return-value]

    def on_rank_zero(self, decide: Callable[[], T]) -> T:
        """Return what rank 0 decides, on all ranks.

        Raises:
            UserError: what it raised, on all of them; also what the system would not do.
        """
        decided: T | None = None
        refused = ""
        if self.is_main:
            try:
                decided = decide()
            except (UserError, OSError) as error:  # no permission, a broken disk
                refused = str(error) or type(error).__name__
        decided, refused = self.gather((decided, refused))[0]
        if refused:
            raise UserError(refused)
        return decided  # type: ignore[return-value]

    def own_group(self) -> Ranks:
        """Put these ranks in a group of their own, for a thread; all must ask for it together."""
        if self.count == 1:
            return self
        return Ranks(self.rank, self.count, dist.new_group(backend="gloo", timeout=TIMEOUT))

    def whole(self, share: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Gather the tensor of that shape of which each rank has its `own_shard`.

        All ranks call this together.
        """
        if self.count == 1:
            return share.view(shape)
        flat = torch.empty(self.count * len(share))
        dist.all_gather_into_tensor(flat, share, group=self.group)
        return flat[: shape.numel()].view(shape)

    def neighbours(self, size: int) -> Ranks:
        """Put the ``size`` consecutive ranks that this one is among in a group of their own.

        All must ask for it together.
        """
        if size == 1:
            return Ranks()
        groups = [
            dist.new_group(range(first, first + size), backend="gloo", timeout=TIMEOUT)
            for first in range(0, self.count, size)
        ]
        return Ranks(self.rank % size, size, groups[self.rank // size])

    def gather_dict(self, mine: Mapping[K, T]) -> dict[K, T]:
        """Return the entries of every rank's mapping, in one."""
        return {key: value for part in self.gather(mine) for key, value in part.items()}


def own_shard(whole: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Copy to the CPU this rank's shard of a tensor, flat: all ranks' are of the same length.

    Zeros stand behind the last one, where the number of ranks does not divide the tensor's.
    """
    flat = whole.detach().flatten()
    length = -(-flat.numel() // ranks.count)
    own = flat[ranks.rank * length : (ranks.rank + 1) * length]
    shard = torch.zeros(length)
    shard[: len(own)] = own
    return shard


def join_ranks() -> Ranks:
    """Join the processes that the launcher started; alone if there was none.

    Raises:
        UserError: if there are more processes on this machine than GPUs, where it has any.
    """
    keep_segments_whole()
    if not launched():
        return Ranks()
    end_with_launcher()
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"local rank {local} has no GPU: {torch.cuda.device_count()} visible; start one "
                "process per GPU"
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # Objects are gathered on the CPU, so gloo is there beside nccl.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks() -> None:
    """End a run that went well: nobody waits for anybody any more."""
    if dist.is_initialized():
        dist.destroy_process_group()
