"""Tensors that leave a GPU for a while, and come back in the same storage."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import NamedTuple

import torch

from ttrl.system.memory import pin


class _Away(NamedTuple):
    tensor: torch.Tensor
    """Who looks at it meanwhile sees the copy on the host, if there is one."""
    place: torch.Tensor
    """The same on the GPU, whose storage is empty meanwhile."""
    size: int
    """Bytes of that storage."""
    host: torch.Tensor | None
    """What it held; None if that was forgotten."""


class Offload:
    """Gives up the storage of tensors, and takes it back.

    Views of them remain views of them, and see nothing meanwhile. Each must have its storage for
    itself, views aside.
    """

    def __init__(self) -> None:
        """Nothing is away."""
        self._away: list[_Away] = []
        self._hosts: dict[torch.Tensor, torch.Tensor] = {}

    @property
    def is_away(self) -> bool:
        """Whether anything is."""
        return bool(self._away)

    def leave(self, kept: Iterable[torch.Tensor], forgotten: Iterable[torch.Tensor]) -> None:
        """Free the storage of all of them; what the ``kept`` hold waits in the host's memory."""
        for tensor in kept:
            if tensor not in self._hosts:
                self._hosts[tensor] = host_like(tensor)
            self._hosts[tensor].copy_(tensor.detach())
            self._free(tensor, self._hosts[tensor])
        for tensor in forgotten:
            self._free(tensor, None)

    def come_back(self) -> None:
        """Take it back: the ``kept`` are what they were, to the bit, and the others zero."""
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
    """Memory of the host of exactly that size, pinned where the tensor is on a GPU.

    What torch pins itself is rounded up to a power of two.
    """
    if tensor.is_cuda and tensor.numel():
        # Whole pages of its own: none can be pinned twice. For as long as the process runs.
        pages = torch.frombuffer(mmap.mmap(-1, tensor.nbytes), dtype=tensor.dtype)
        pin(pages)
        return pages.view(tensor.shape)
    return torch.empty_like(tensor, device="cpu", requires_grad=False)
