"""Random streams without state, and the generators that have one."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from ttrl.system.rng import (
    generator,
    globals_state,
    restore_globals,
    seed_globals,
    strictly_deterministic,
    uniforms,
)


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


@pytest.mark.parametrize("count", [1, 2, 7])
def test_uniforms_of_many_streams_are_those_of_their_generators(count: int) -> None:
    streams = [(0, "a"), (0, "a", 1), ("b",), (), (0, "a")]
    expected = [generator(*stream).random(count).tolist() for stream in streams]
    assert uniforms(streams, count).tolist() == expected


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


def test_in_an_update_what_has_no_fixed_order_is_refused() -> None:
    """A run on a GPU only warns of it elsewhere; `put_` has no fixed order on a CPU either."""

    def put() -> None:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    before = torch.get_deterministic_debug_mode()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with strictly_deterministic(), pytest.raises(RuntimeError, match="put_"):
            put()
        with pytest.warns(UserWarning, match="put_"):
            put()
        torch.use_deterministic_algorithms(False)
        with strictly_deterministic():
            put()  # whoever asked for no fixed order gets none
        assert torch.get_deterministic_debug_mode() == 0
    finally:
        torch.set_deterministic_debug_mode(before)
