"""Tensors that leave a GPU for a while, and come back in the same storage."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import NamedTuple

import torch

from ttrl.system.memory import pin


class _Away(NamedTuple):
    tensor: torch.Tensor
    """The tensor, which meanwhile is its copy on the host, if there is one."""
    place: torch.Tensor
    """The tensor's place on the GPU, whose storage is empty meanwhile."""
    size: int
    """Bytes of the storage on the GPU."""
    host: torch.Tensor | None
    """What the tensor held; None if that was forgotten."""


class Offload:
    """Gives up the storage of tensors, and takes it back.

    Views of them remain views of them, and see nothing meanwhile. Each must have its storage for
    itself, views aside.
    """

    def __init__(self) -> None:
        """Begin with nothing away."""
        self._away: list[_Away] = []
        self._hosts: dict[torch.Tensor, torch.Tensor] = {}

    @property
    def is_away(self) -> bool:
        """Whether any tensor is away."""
        return bool(self._away)

    def leave(self, kept: Iterable[torch.Tensor], forgotten: Iterable[torch.Tensor]) -> None:
        """Free the storage of these tensors; what the ``kept`` hold waits in the host's memory."""
        for tensor in kept:
            if tensor not in self._hosts:
                self._hosts[tensor] = host_like(tensor)
            self._hosts[tensor].copy_(tensor.detach())
            self._free(tensor, self._hosts[tensor])
        for tensor in forgotten:
            self._free(tensor, None)

    def come_back(self) -> None:
        """Take storage back: the ``kept`` are what they were, to the bit, and the others zero."""
        while self._away:
            tensor, place, size, host = self._away.pop()
            place.untyped_storage().resize_(size)
            if host is None:
                place.zero_()
            else:
                place.copy_(host)
                tensor.data = place

    def _free(self, tensor: torch.Tensor, host: torch.Tensor | None) -> None:
        place = tensor.data
        storage = place.untyped_storage()
        self._away.append(_Away(tensor, place, storage.nbytes(), host))
        storage.resize_(0)
        if host is not None:
            tensor.data = host


def host_like(tensor: torch.Tensor) -> torch.Tensor:
    """Allocate memory of the host of exactly that size, pinned where the tensor is on a GPU.

    What torch pins itself is rounded up to a power of two.
    """
    if tensor.is_cuda and tensor.numel():
        # Whole pages of its own: none can be pinned twice. For as long as the process runs.
        pages = torch.frombuffer(mmap.mmap(-1, tensor.nbytes), dtype=tensor.dtype)
        pin(pages)
        return pages.view(tensor.shape)
    return torch.empty_like(tensor, device="cpu", requires_grad=False)
