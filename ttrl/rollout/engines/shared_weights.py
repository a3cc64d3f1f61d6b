"""A model's weights in memory that several processes see: one copy for all engines.

The memory has no name in any file system (memfd): a process gets at it through the descriptor that
it was started with, and it is gone with the last process that has one, however that one ends.

Layout: the tensors one after the other, each from a multiple of `ALIGNMENT` on. Where each one lies
is said in JSON: ``{name: {"dtype": "float32", "shape": [2, 3], "offset": 64}}``, offset in bytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ttrl.rollout.engines.weights import complete
from ttrl.system.memory import pin
from ttrl.types import UserError

ALIGNMENT = 64
"""Bytes of which each tensor's place is a multiple."""

Index = dict[str, dict[str, Any]]


class SharedWeights:
    """The writing end of a copy of the weights in shared memory."""

    def __init__(self, shapes: Mapping[str, torch.Size], dtype: str) -> None:
        """Make room for parameters of these shapes, in ``dtype``.

        Raises:
            UserError: if there is not so much memory.
        """
        self._shapes = shapes
        self.index, size = _lay_out(shapes, dtype)
        """Where each tensor lies."""
        if size > (free := _available_memory()):  # to take more would end processes, not fail
            raise UserError(
                'rollout.placement = "separate" keeps a copy of the weights in shared memory: '
                f"{size / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free"
            )
        self.descriptor = os.memfd_create("ttrl-weights")
        """To be inherited by those who `read_weights`."""
        os.ftruncate(self.descriptor, size)
        whole = _mapped(self.descriptor, mmap.ACCESS_WRITE)
        self._unpin: Callable[[], None] | None = pin(whole)
        self._tensors = _tensors(whole, self.index)

    @torch.no_grad()
    def write(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite all weights, one at a time, rounded to this copy's type.

        Raises:
            RuntimeError: if the set is not complete; see `ttrl.rollout.engines.weights`.
        """
        for name, tensor in complete(weights, self._shapes):
            self._tensors[name].copy_(tensor.detach())

    def close(self) -> None:
        """Give the memory back, as far as no other process has it."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self._tensors = {}
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def read_weights(descriptor: int, index: Index) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors as they are now, in a mapping of this process's own.

    They are valid until the next write, and changing them changes nobody else's.
    """
    yield from _tensors(_mapped(descriptor, mmap.ACCESS_COPY), index).items()


def _available_memory() -> int:
    """Return what this machine can give without swapping, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        (kib,) = (line.split()[1] for line in file if line.startswith("MemAvailable:"))
    return int(kib) * 1024


def _lay_out(shapes: Mapping[str, torch.Size], dtype: str) -> tuple[Index, int]:
    """Return where each tensor goes, and the size of it all in bytes."""
    index: Index = {}
    end = 0
    for name, shape in shapes.items():
        index[name] = {"dtype": dtype, "shape": list(shape), "offset": end}
        size = shape.numel() * getattr(torch, dtype).itemsize
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return index, end


def _mapped(descriptor: int, access: int) -> torch.Tensor:
    """Map the whole memory as bytes, which keep the mapping alive."""
    return torch.frombuffer(mmap.mmap(descriptor, 0, access=access), dtype=torch.uint8)


def _tensors(whole: torch.Tensor, index: Index) -> dict[str, torch.Tensor]:
    """Return the tensors inside the memory, of which they are views."""
    tensors = {}
    for name, place in index.items():
        dtype = getattr(torch, place["dtype"])
        shape = torch.Size(place["shape"])
        part = whole[place["offset"] :][: shape.numel() * dtype.itemsize]
        tensors[name] = part.view(dtype).view(shape)
    return tensors
