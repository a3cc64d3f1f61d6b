"""Weights and rejections of one optimizer step, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ttrl.learner.correction import importance_weights, rejected
from ttrl.settings import LossSettings

LOG_RATIOS = [np.log([0.4, 0.5, 0.6, 1.0, 1.9, 2.1]), np.array([500.0])]
"""The last one's ratio is infinite."""


def weights(log_ratios: list[np.ndarray], **loss: Any) -> tuple[list[float], list[bool]]:
    found, changed = importance_weights(log_ratios, LossSettings(old_logprobs="policy", **loss))
    assert [len(x) for x in found] == [len(x) for x in changed] == [len(x) for x in log_ratios]
    return np.concatenate(found).tolist(), np.concatenate(changed).tolist()


def test_truncated() -> None:
    found, changed = weights(LOG_RATIOS, sampler_correction="truncate")
    assert found == pytest.approx([0.4, 0.5, 0.6, 1.0, 1.9, 2.0, 2.0])
    assert changed == [False] * 5 + [True] * 2


def test_masked_by_one_bound_and_its_inverse() -> None:
    found, changed = weights(LOG_RATIOS, sampler_correction="mask", sampler_ratio_cap=2.05)
    assert found == pytest.approx([0.0, 0.5, 0.6, 1.0, 1.9, 0.0, 0.0])
    assert changed == [True] + [False] * 4 + [True] * 2


def test_masked_by_two_bounds() -> None:
    bounds = {"sampler_ratio_cap": 2.0, "sampler_ratio_floor": 0.55}
    found, changed = weights(LOG_RATIOS, sampler_correction="mask", **bounds)
    assert found == pytest.approx([0.0, 0.0, 0.6, 1.0, 1.9, 0.0, 0.0])
    assert changed == [True, True, False, False, False, True, True]
    bounds["sampler_ratio_floor"] = 0.0
    found, changed = weights([np.array([-500.0, -1e9])], sampler_correction="mask", **bounds)
    assert found == pytest.approx([math.exp(-500), 0]) and changed == [False, False]


def test_uncorrected() -> None:
    assert weights(LOG_RATIOS) == ([1.0] * 7, [False] * 7)


SEQUENCES = [np.log([2.0, 0.5, 1.5]), np.log([0.5, 0.5]), np.log([4.0])]
"""Products 1.5, 0.25 and 4; geometric means 1.1447, 0.5 and 4."""


def test_a_sequence_has_the_product_of_its_ratios_or_their_geometric_mean() -> None:
    product = {"sampler_level": "sequence_product", "sampler_ratio_cap": 3.0}
    found, changed = weights(SEQUENCES, sampler_correction="truncate", **product)
    assert found == pytest.approx([1.5] * 3 + [0.25] * 2 + [3.0])
    assert changed == [False] * 5 + [True]
    found, changed = weights(SEQUENCES, sampler_correction="mask", **product)
    assert found == pytest.approx([1.5] * 3 + [0.0] * 3)
    mean = {"sampler_level": "sequence_geometric", "sampler_ratio_cap": 3.0}
    found, changed = weights(SEQUENCES, sampler_correction="mask", **mean)
    assert found == pytest.approx([1.5 ** (1 / 3)] * 3 + [0.5] * 2 + [0.0])
    assert changed == [False] * 5 + [True]


def test_normalized_by_the_mean_over_tokens_or_sequences() -> None:
    found, _ = weights(
        [np.log([1.0, 3.0]), np.log([0.5])], sampler_correction="truncate", sampler_normalize=True
    )
    assert found == pytest.approx([1 / (3.5 / 3), 2 / (3.5 / 3), 0.5 / (3.5 / 3)])  # 3 is cut to 2
    found, _ = weights(
        SEQUENCES,
        sampler_correction="truncate",
        sampler_level="sequence_product",
        sampler_ratio_cap=4.5,
        sampler_normalize=True,
    )
    mean = (1.5 + 0.25 + 4) / 3
    assert found == pytest.approx([1.5 / mean] * 3 + [0.25 / mean] * 2 + [4 / mean])


def test_weights_that_are_all_masked_stay_zero() -> None:
    found, changed = weights(
        [np.array([2.0, -2.0])], sampler_correction="mask", sampler_normalize=True
    )
    assert (found, changed) == ([0, 0], [True, True])


GAPS = [np.array([0.3, -0.2]), np.array([-0.4, -0.4, 0.1]), np.array([900.0])]


@pytest.mark.parametrize(
    ("by", "kl", "bound", "expected"),
    [
        ("token", "k1", 0.25, [[True, False], [True, True, False], [True]]),
        ("token", "k2", 0.05, [[False, False], [True, True, False], [True]]),  # .045 .02 .08 .005
        ("token", "k3", 0.06, [[False, False], [True, True, False], [True]]),  # .0499 .0187 .0703
        ("sequence_sum", "k1", 0.65, [[False] * 2, [True] * 3, [True]]),  # 0.1, -0.7
        ("sequence_sum", "k2", 0.1, [[False] * 2, [True] * 3, [True]]),  # .065, .165
        ("sequence_sum", "k3", 0.15, [[False] * 2, [False] * 3, [True]]),  # .0686, .1458
        ("sequence_sum", "k3", 0.145, [[False] * 2, [True] * 3, [True]]),
        ("sequence_mean", "k1", 0.2, [[False] * 2, [True] * 3, [True]]),  # 0.05, -0.2333
        ("sequence_mean", "k1", 0.24, [[False] * 2, [False] * 3, [True]]),
        ("sequence_mean", "k2", 0.04, [[False] * 2, [True] * 3, [True]]),  # .0325, .055
        ("sequence_max", "k1", 0.35, [[False] * 2, [True] * 3, [True]]),
        ("sequence_max", "k2", 0.04, [[True] * 2, [True] * 3, [True]]),
    ],
)
def test_rejections(by: str, kl: str, bound: float, expected: list[list[bool]]) -> None:
    loss = LossSettings(
        sampler_rejection=by, sampler_rejection_kl=kl, sampler_rejection_bound=bound
    )
    assert [x.tolist() for x in rejected(GAPS, loss)] == expected


def test_nothing_is_rejected_by_default() -> None:
    assert [x.tolist() for x in rejected(GAPS, LossSettings())] == [
        [False] * 2,
        [False] * 3,
        [False],
    ]
