"""What an optimizer step decides about its tokens, once more, with loops over floats."""

from __future__ import annotations

import math
from statistics import fmean

from ttrl.settings import LossSettings

Rows = list[list[float]]
"""A number per token of each sequence."""


def kept_by_entropy(entropies: Rows, share: float | None) -> Rows:
    """1 for the tokens of the highest entropy, 0 for the others."""
    if share is None:
        return [[1.0] * len(row) for row in entropies]
    every = sorted(h for row in entropies for h in row)
    place = (1 - share) * (len(every) - 1)
    low = math.floor(place)
    high = min(low + 1, len(every) - 1)
    bound = every[low] + (place - low) * (every[high] - every[low])
    return [[float(h >= bound) for h in row] for row in entropies]


def covariances(advantages: Rows, logprobs: Rows) -> Rows:
    """Each token's share of the covariance of log-prob and advantage."""
    a_mean = fmean(a for row in advantages for a in row)
    x_mean = fmean(x for row in logprobs for x in row)
    return [
        [(a - a_mean) * (x - x_mean) for a, x in zip(*rows, strict=True)]
        for rows in zip(advantages, logprobs, strict=True)
    ]


def penalized(found: Rows, loss: LossSettings) -> Rows:
    """The penalty of the tokens of the highest covariance."""
    every = sorted((c for row in found for c in row), reverse=True)
    bound = every[max(1, int(loss.covariance_share * len(every))) - 1]
    return [[loss.covariance_kl_coef * (c >= bound) for c in row] for row in found]


def all_within_bounds(found: Rows, advantages: Rows, log_ratios: Rows, loss: LossSettings) -> Rows:
    """0 for every token that Clip-Cov may choose: all of them are, where its share is 1."""
    assert loss.covariance_share == 1
    low, high = loss.covariance_bounds
    rows = []
    for cs, advantage_n, ds in zip(found, advantages, log_ratios, strict=True):
        row = []
        for c, a, d in zip(cs, advantage_n, ds, strict=True):
            r = math.exp(d)
            clipped = (a > 0 and r > 1 + loss.clip_high) or (a < 0 and r < 1 - loss.clip_low)
            row.append(float(not (low < c < high) or clipped))
        rows.append(row)
    return rows


def sampler_factors(log_ratios: Rows, loss: LossSettings) -> tuple[Rows, float, float]:
    """Weight of each token's policy term; share of tokens that a bound changed, and rejected."""
    weights, changed = [], []
    for row in log_ratios:
        level = {
            "token": row,
            "sequence_product": [sum(row)] * len(row),
            "sequence_geometric": [sum(row) / len(row)] * len(row),
        }[loss.sampler_level]
        floor = loss.sampler_ratio_floor
        floor = 1 / loss.sampler_ratio_cap if floor is None else floor
        for w in map(math.exp, level):
            above, below = w > loss.sampler_ratio_cap, w < floor
            if loss.sampler_correction == "truncate":
                weights.append(min(w, loss.sampler_ratio_cap))
                changed.append(above)
            elif loss.sampler_correction == "mask":
                weights.append(0.0 if above or below else w)
                changed.append(above or below)
            else:
                weights.append(1.0)
                changed.append(False)
    by_row, start = [], 0
    for row in log_ratios:
        by_row.append(weights[start : start + len(row)])
        start += len(row)
    if loss.sampler_normalize:
        of = weights if loss.sampler_level == "token" else [row[0] for row in by_row]
        by_row = [[w / fmean(of) for w in row] for row in by_row]
    dropped = [_rejected(row, loss) for row in log_ratios]
    factors = [
        [0.0 if out else w for w, out in zip(*rows, strict=True)]
        for rows in zip(by_row, dropped, strict=True)
    ]
    return factors, fmean(changed), fmean(out for row in dropped for out in row)


def _rejected(row: list[float], loss: LossSettings) -> list[bool]:
    if loss.sampler_rejection == "none":
        return [False] * len(row)
    k = [
        {"k1": d, "k2": 0.5 * d * d, "k3": math.exp(d) - d - 1}[loss.sampler_rejection_kl]
        for d in row
    ]
    if loss.sampler_rejection == "token":
        return [abs(x) > loss.sampler_rejection_bound for x in k]
    figure = {
        "sequence_sum": abs(sum(k)),
        "sequence_mean": abs(sum(k) / len(k)),
        "sequence_max": max(map(abs, k)),
    }[loss.sampler_rejection]
    return [figure > loss.sampler_rejection_bound] * len(row)
