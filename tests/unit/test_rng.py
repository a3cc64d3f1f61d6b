"""Random streams without state, and the generators that have one."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from ttrl.rng import generator, globals_state, restore_globals, seed_globals


def _draw() -> tuple[float, ...]:
    return (
        torch.rand(()).item(),
        float(np.random.rand()),
        float(np.random.randn()),  # the next one is kept for later
        random.random(),
        random.gauss(),
    )


def test_streams_are_their_names() -> None:
    first, again, other = (generator(*stream).random() for stream in ((1, "a"), (1, "a"), (1, "b")))
    assert first == again != other


def test_global_generators_go_on_where_they_were() -> None:
    before = globals_state()
    try:
        seed_globals(7)
        _draw()
        state = json.loads(json.dumps(globals_state()))
        expected = [_draw() for _ in range(3)]
        assert all(value != now for value, now in zip(expected[0], _draw(), strict=True))
        restore_globals(state)
        assert [_draw() for _ in range(3)] == expected
        seed_globals(7)
        assert _draw() != expected[0]
    finally:
        restore_globals(before)
