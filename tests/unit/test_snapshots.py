"""Weights to go back to, of a model of one number."""

from __future__ import annotations

import pytest
import torch

from ttrl.learner.snapshots import WeightSnapshots


class OneWeight:
    def __init__(self) -> None:
        self.weight = torch.zeros(1)

    def shard_sizes(self, kinds: tuple[str, ...]) -> dict[str, int]:
        return {f"{kind}/w": 1 for kind in kinds}

    def shards(self, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {f"{kind}/w": self.weight.clone() for kind in kinds}

    def load_shards(self, shards: dict[str, torch.Tensor]) -> None:
        self.weight.copy_(shards["weights/w"])


def after(steps: int) -> WeightSnapshots:
    """Those of a model whose weight is the step, in passes of two steps."""
    model = OneWeight()
    snapshots = WeightSnapshots(model, steps_per_pass=2)  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        model.weight.fill_(step)
        snapshots.after_step(step)
    model.weight.fill_(99)
    return snapshots


STEPS = pytest.mark.parametrize(("steps", "kept"), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 2), (5, 2)])


@STEPS
def test_restored_weights_are_those_before_the_last_whole_pass(steps: int, kept: int) -> None:
    snapshots = after(steps)
    assert snapshots.restore() == kept
    assert snapshots.model.weight.item() == kept  # type: ignore[operator, union-attr]


@STEPS
def test_what_was_saved_goes_on_the_same(steps: int, kept: int) -> None:
    saved, other = after(steps), after(0)
    other.load_state(saved.state())
    assert other.shard_sizes() == {key: len(shard) for key, shard in saved.shards().items()}
    other.load_shards(saved.shards())
    assert other.restore() == kept
    assert other.model.weight.item() == kept  # type: ignore[operator, union-attr]
