"""Tensors that leave and come back, on a CPU: it frees storage like a GPU."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import torch
from pytest import MonkeyPatch

from ttrl.learner import offload
from ttrl.learner.offload import Offload


def test_what_is_kept_comes_back_to_the_bit_and_what_is_not_is_zero() -> None:
    kept = [torch.randn(5, 7), torch.randn(11, dtype=torch.float32).requires_grad_()]
    forgotten = [torch.randn(13)]
    views = [kept[0][1], forgotten[0][2:5]]
    places = [t.data for t in (*kept, *forgotten)]
    truth = [t.detach().clone() for t in kept]
    away = Offload()
    for _ in range(2):
        away.leave(kept, forgotten)
        assert away.is_away
        assert [place.untyped_storage().nbytes() for place in places] == [0, 0, 0]
        # Who reads a kept one meanwhile reads the copy.
        assert all(torch.equal(t.detach(), own) for t, own in zip(kept, truth, strict=True))
        away.come_back()
        assert not away.is_away
        assert all(torch.equal(t.detach(), own) for t, own in zip(kept, truth, strict=True))
        assert forgotten[0].eq(0).all()
        assert torch.equal(views[0], truth[0][1]) and views[1].eq(0).all()
        assert [t.data_ptr() for t in (*kept, *forgotten)] == [p.data_ptr() for p in places]
        kept[0].add_(1.0)
        truth[0].add_(1.0)
        assert torch.equal(views[0], truth[0][1])


def test_what_a_gpu_copies_to_is_pinned_pages_of_its_own(monkeypatch: MonkeyPatch) -> None:
    """Memory that two tensors share a page of could not be pinned for the second."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(offload, "pin", pinned.append)
    shown = [
        SimpleNamespace(is_cuda=True, numel=lambda: 3, nbytes=12, dtype=torch.float32, shape=(3, 1))
    ] * 2
    hosts = [offload.host_like(tensor) for tensor in shown]
    assert [h.shape for h in hosts] == [(3, 1)] * 2
    addresses = [h.data_ptr() for h in hosts]
    assert addresses == [p.data_ptr() for p in pinned]
    assert all(a % mmap.PAGESIZE == 0 for a in addresses) and len(set(addresses)) == 2
    nothing = SimpleNamespace(is_cuda=True, numel=lambda: 0)
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: "empty")
    assert offload.host_like(nothing) == "empty" and len(pinned) == 2


def test_copies_on_the_host_are_made_once() -> None:
    away, tensor = Offload(), torch.randn(100)
    addresses = set()
    for _ in range(3):
        away.leave([tensor], [])
        addresses.add(tensor.data_ptr())
        away.come_back()
    assert len(addresses) == 1
