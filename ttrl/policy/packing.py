"""From chosen completions to packed micro-batches with one weight per token.

The loss of an optimizer step is a sum over tokens of weight x token loss. All of normalization is
in these weights, computed over the whole step, so that it does not matter how the step is split
into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch

from ttrl.types import PackedBatch, TrainSample

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def sequence_weights(
    samples: Sequence[TrainSample], aggregation: Aggregation, max_new_tokens: int
) -> list[float]:
    """The weight of each token of each sample, for the samples of one optimizer step.

    With S sequences of n_s trained tokens:

    - token_mean: 1 / sum(n_s) (DAPO, arXiv 2503.14476)
    - sequence_mean: 1 / (S n_s) (GRPO, arXiv 2402.03300)
    - constant: 1 / (S max_new_tokens) (Dr. GRPO, arXiv 2503.20783)

    each times the sample's own weight.
    """
    lengths = [len(s.completion_ids) for s in samples]
    if aggregation == "token_mean":
        shares = [1 / sum(lengths)] * len(samples)
    elif aggregation == "sequence_mean":
        shares = [1 / (len(samples) * n) for n in lengths]
    else:
        shares = [1 / (len(samples) * max_new_tokens)] * len(samples)
    return [share * s.weight for share, s in zip(shares, samples, strict=True)]


def pack(
    samples: Sequence[TrainSample], weights: Sequence[float], tokens_per_batch: int
) -> list[PackedBatch]:
    """Pack whole sequences, longest first, into micro-batches of at most ``tokens_per_batch``.

    Args:
        samples: what to train on.
        weights: per sample, the weight of each of its tokens.
        tokens_per_batch: a sequence that is longer is an error.
    """
    order = sorted(range(len(samples)), key=lambda i: -_rows(samples[i]))
    batches: list[list[int]] = []
    used = tokens_per_batch
    for i in order:
        rows = _rows(samples[i])
        if rows > tokens_per_batch:
            raise ValueError(
                f"question {samples[i].question_id!r}: a sequence of {rows} tokens does not fit "
                f"policy.tokens_per_batch = {tokens_per_batch}"
            )
        if used + rows > tokens_per_batch:
            batches.append([])
            used = 0
        batches[-1].append(i)
        used += rows
    return [_batch([samples[i] for i in b], [weights[i] for i in b]) for b in batches]


def _rows(sample: TrainSample) -> int:
    return len(sample.prompt_ids) + len(sample.completion_ids) - 1


def _batch(samples: Sequence[TrainSample], weights: Sequence[float]) -> PackedBatch:
    token_ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    old_logp: list[float] = []
    advantages: list[float] = []
    token_weights: list[float] = []
    for sample, weight in zip(samples, weights, strict=True):
        rows, trained = _rows(sample), len(sample.completion_ids)
        context = rows - trained
        token_ids += (*sample.prompt_ids, *sample.completion_ids[:-1])
        positions += range(rows)
        targets += [-100] * context + list(sample.completion_ids)
        old_logp += [0.0] * context + list(sample.logprobs)
        advantages += [0.0] * context + [sample.advantage] * trained
        token_weights += [0.0] * context + [weight] * trained
    return PackedBatch(
        token_ids_T=torch.tensor(token_ids),
        positions_T=torch.tensor(positions),
        cu_seqlens=torch.tensor(
            list(accumulate((_rows(s) for s in samples), initial=0)), dtype=torch.int32
        ),
        targets_T=torch.tensor(targets),
        old_logp_T=torch.tensor(old_logp),
        advantages_T=torch.tensor(advantages),
        token_weights_T=torch.tensor(token_weights),
    )
