"""What an optimizer step as a whole decides about its tokens, before it is split and packed.

It is a function of all of the step's samples, so neither micro-batches nor ranks can change it. A
token whose policy term is dropped keeps its place in every mean, and its KL and entropy terms; its
forward pass is made, so that what engine and policy disagree about is measured all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ttrl.learner.correction import importance_weights, rejected
from ttrl.learner.covariance import between, covariances, highest
from ttrl.learner.entropy_mask import undecided
from ttrl.learner.objective import PreparedStep, TokenScores
from ttrl.settings import LossSettings
from ttrl.types import TrainSample

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def prepare_step(
    samples: Sequence[TrainSample],
    scores: Sequence[TokenScores | None],
    loss: LossSettings,
    *,
    against_own: bool,
    seed: int,
) -> PreparedStep:
    """Complete the samples of one optimizer step.

    Args:
        samples: of all ranks.
        scores: the policy's own before a rollout's first update, where they are known: samples
            without are left as they are.
        loss: what is decided.
        against_own: whether ratios are measured against the policy's own log-probs, as they are
            after a rollout's first step with ``old_logprobs = "policy"``.
        seed: of the run.
    """
    known = [i for i, found in enumerate(scores) if found is not None]
    found = [x for x in scores if x is not None]
    completed = list(samples)
    if against_own:
        for i, x in zip(known, found, strict=True):
            completed[i] = replace(completed[i], old_logprobs=x.logprobs)
    figures = {"corrected": 0.0, "rejected": 0.0}
    if not known or not (loss.corrects or loss.compares_tokens):
        return PreparedStep(completed, figures)

    chosen = [samples[i] for i in known]
    log_ratios = [
        np.array(x.logprobs) - np.array(s.logprobs) for x, s in zip(found, chosen, strict=True)
    ]
    factors, corrected = importance_weights(log_ratios, loss)
    dropped = rejected(log_ratios, loss)
    figures = {"corrected": _share(corrected), "rejected": _share(dropped)}
    if loss.entropy_mask is not None:
        kept = undecided([np.array(x.entropies) for x in found], loss.entropy_mask)
        dropped = [out | ~on for out, on in zip(dropped, kept, strict=True)]
    held = _held_back(chosen, found, log_ratios, loss, seed)
    if loss.covariance == "clip":
        dropped = [out | on for out, on in zip(dropped, held, strict=True)]
    for n, i in enumerate(known):
        penalties = np.where(held[n], loss.covariance_kl_coef, 0.0)
        completed[i] = replace(
            completed[i],
            policy_factors=tuple(np.where(dropped[n], 0.0, factors[n]).tolist()),
            ratio_penalties=tuple(penalties.tolist()) if loss.covariance == "kl" else None,
        )
    return PreparedStep(completed, figures)


def _held_back(
    samples: Sequence[TrainSample],
    scores: Sequence[TokenScores],
    log_ratios: Sequence[Values],
    loss: LossSettings,
    seed: int,
) -> list[Flags]:
    """Say which tokens ``loss.covariance`` is about."""
    if loss.covariance == "none":
        return [np.zeros(d.shape, bool) for d in log_ratios]
    advantages = [np.array(s.advantages) for s in samples]
    found = covariances(advantages, [np.array(x.logprobs) for x in scores])
    if loss.covariance == "kl":
        return highest(found, loss.covariance_share)
    clipped = _clipped(advantages, log_ratios, loss)
    # A stream of this step's own, the same on all ranks and in a run that goes on.
    stream = (seed, "clip-cov", repr([s.token_ids for s in samples]))
    return between(found, clipped, loss.covariance_bounds, loss.covariance_share, stream)


def _clipped(
    advantages: Sequence[Values], log_ratios: Sequence[Values], loss: LossSettings
) -> list[Flags]:
    """Say which tokens PPO clips before the first update: none if their ratio is to themselves."""
    if loss.old_logprobs == "policy":
        return [np.zeros(a.shape, bool) for a in advantages]
    if loss.ratio_level == "sequence":
        log_ratios = [np.full_like(d, d.mean()) for d in log_ratios]
    high, low = math.log1p(loss.clip_high), -math.inf
    if loss.clip_low < 1:
        low = math.log1p(-loss.clip_low)
    return [
        ((a > 0) & (d > high)) | ((a < 0) & (d < low))
        for a, d in zip(advantages, log_ratios, strict=True)
    ]


def _share(flags: Sequence[Flags]) -> float:
    return float(np.concatenate(flags).mean())
