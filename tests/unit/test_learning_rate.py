"""Learning rates: a line up, then half a cosine down."""

from __future__ import annotations

import math

import pytest

from ttrl.learner.optimizer import learning_rate
from ttrl.settings import OptimizerSettings


def rates(total: int, **changes: float) -> list[float]:
    policy = OptimizerSettings(learning_rate=8.0, **changes)
    return [learning_rate(step, total, policy) for step in range(1, total + 1)]


def test_learning_rates_by_hand() -> None:
    """Ten steps: two of warm-up, then eight along half a cosine, beginning at the peak."""
    cosine = [math.cos(math.pi * i / 8) for i in range(8)]
    expected = [4.0, 8.0, *(2 + 6 * (1 + c) / 2 for c in cosine)]
    assert rates(10, warmup_share=0.2, final_lr_share=0.25) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("total", "changes", "expected"),
    [
        (1, {}, [8.0]),
        (2, {"warmup_share": 0.0}, [8.0, 4.0]),
        (4, {"warmup_share": 1.0}, [2.0, 4.0, 6.0, 8.0]),
        (3, {"final_lr_share": 1.0, "warmup_share": 0.0}, [8.0, 8.0, 8.0]),
        (4, {"warmup_share": 0.01}, [8.0, 8.0, 6.0, 2.0]),  # any share is at least one step
    ],
)
def test_learning_rates_at_the_edges(
    total: int, changes: dict[str, float], expected: list[float]
) -> None:
    assert rates(total, **changes) == pytest.approx(expected)


@pytest.mark.parametrize("total", [5, 80, 240])
def test_learning_rates_rise_to_the_peak_and_fall_to_the_final_share(total: int) -> None:
    found = rates(total, warmup_share=0.1, final_lr_share=0.5)
    top = found.index(8.0)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert 4.0 < found[-1] < 8.0 and all(rate > 0 for rate in found)
    assert learning_rate(total + 1, total, OptimizerSettings(final_lr_share=0.5)) == pytest.approx(
        0.5 * OptimizerSettings().learning_rate
    )
