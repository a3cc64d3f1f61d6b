"""Tensors that leave and come back, on a CPU: it frees storage like a GPU."""

from __future__ import annotations

import torch

from ttrl.policy.offload import Offload


def test_what_is_kept_comes_back_to_the_bit_and_what_is_not_is_zero() -> None:
    kept = [torch.randn(5, 7), torch.randn(11, dtype=torch.float32).requires_grad_()]
    forgotten = [torch.randn(13)]
    views = [kept[0][1], forgotten[0][2:5]]
    places = [t.data for t in (*kept, *forgotten)]
    truth = [t.detach().clone() for t in kept]
    offload = Offload()
    for _ in range(2):
        offload.leave(kept, forgotten)
        assert offload.is_away
        assert [place.untyped_storage().nbytes() for place in places] == [0, 0, 0]
        # Who reads a kept one meanwhile reads the copy.
        assert all(torch.equal(t.detach(), own) for t, own in zip(kept, truth, strict=True))
        offload.come_back()
        assert not offload.is_away
        assert all(torch.equal(t.detach(), own) for t, own in zip(kept, truth, strict=True))
        assert forgotten[0].eq(0).all()
        assert torch.equal(views[0], truth[0][1]) and views[1].eq(0).all()
        assert [t.data_ptr() for t in (*kept, *forgotten)] == [p.data_ptr() for p in places]
        kept[0].add_(1.0)
        truth[0].add_(1.0)
        assert torch.equal(views[0], truth[0][1])


def test_copies_on_the_host_are_made_once() -> None:
    offload, tensor = Offload(), torch.randn(100)
    addresses = set()
    for _ in range(3):
        offload.leave([tensor], [])
        addresses.add(tensor.data_ptr())
        offload.come_back()
    assert len(addresses) == 1
