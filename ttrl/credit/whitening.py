"""Whitening: one mean and one variance for all of a step's trained tokens of a turn and role."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ttrl.types import TrainSample

EPSILON = 1e-8
"""Added to the variance, as by the trainers whose learning rates the recipes take over."""


def whiten(values: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Shift and scale numbers so that over all of them the mean is 0 and the variance 1.

    (x - mean) / sqrt(variance + 1e-8), with N - 1 of the N numbers in the variance's denominator.
    Every number counts once, so that a long answer counts more than a short one: REINFORCE++
    (arXiv 2501.03262), and GAE as PPO uses it. Sums are exactly rounded (`math.fsum`), so that the
    order of the samples leaves no trace.

    Equal numbers, or a single one, give zeros, exactly: they say nothing about each other.

    Args:
        values: per sample, one number per trained token.

    Returns:
        The same, whitened.
    """
    flat = [x for sample in values for x in sample]
    if not flat or min(flat) == max(flat):
        return [(0.0,) * len(sample) for sample in values]
    mean = math.fsum(flat) / len(flat)
    variance = math.fsum((x - mean) ** 2 for x in flat) / (len(flat) - 1)
    scale = math.sqrt(variance + EPSILON)
    return [tuple((x - mean) / scale for x in sample) for sample in values]


def whitened_by_part(
    samples: Sequence[TrainSample],
    advantages: Sequence[Sequence[float]],
    parts: Sequence[object],
) -> list[TrainSample]:
    """Give the samples these advantages, whitened over all of them that count, part by part.

    Args:
        samples: those of weight 0 are left out of means and variances, and as they are.
        advantages: per sample, one number per trained token.
        parts: per sample, see `ttrl.types.part_of`; one for all in a single turn.
    """
    found = list(samples)
    by_part: dict[object, list[int]] = {}
    for i, (sample, part) in enumerate(zip(samples, parts, strict=True)):
        if sample.weight:
            by_part.setdefault(part, []).append(i)
    for places in by_part.values():
        for i, white in zip(places, whiten([advantages[i] for i in places]), strict=True):
            found[i] = replace(found[i], advantages=white)
    return found
