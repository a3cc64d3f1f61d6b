"""From chosen completions to packed micro-batches with one weight per token.

The loss of an optimizer step is a sum over tokens of weight x token loss. All of normalization is
in these weights, computed over the whole step, so that it does not matter how the step is split
into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch

from ttrl.system.balance import balance
from ttrl.types import PackedBatch, TrainSample

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def sequence_weights(
    samples: Sequence[TrainSample], aggregation: Aggregation, max_new_tokens: int
) -> list[float]:
    """Compute the weight of each token of each sample, for the samples of one optimizer step.

    With S sequences of n_s trained tokens:

    - token_mean: 1 / sum(n_s) (DAPO, arXiv 2503.14476)
    - sequence_mean: 1 / (S n_s) (GRPO, arXiv 2402.03300)
    - constant: 1 / (S max_new_tokens) (Dr. GRPO, arXiv 2503.20783)

    each times the sample's own weight.
    """
    lengths = [len(s.logprobs) for s in samples]
    if aggregation == "token_mean":
        shares = [1 / sum(lengths)] * len(samples)
    elif aggregation == "sequence_mean":
        shares = [1 / (len(samples) * n) for n in lengths]
    else:
        shares = [1 / (len(samples) * max_new_tokens)] * len(samples)
    return [share * s.weight for share, s in zip(shares, samples, strict=True)]


def pack(
    samples: Sequence[TrainSample],
    weights: Sequence[float],
    tokens_per_batch: int,
    parts: int = 1,
) -> list[PackedBatch]:
    """Pack whole sequences into micro-batches of at most ``tokens_per_batch``, of like sizes.

    Args:
        samples: what to train on.
        weights: per sample, the weight of each of its tokens.
        tokens_per_batch: a sequence that is longer is an error.
        parts: the number of batches is a multiple of it, so that every rank gets as many
            (``batches[rank::parts]``); where there are too few samples, some have no weight.
    """
    dealt = deal(samples, tokens_per_batch, parts)
    return [batch_of([samples[i] for i in b], [weights[i] for i in b]) for b in dealt]


def deal(samples: Sequence[TrainSample], tokens_per_batch: int, parts: int = 1) -> list[list[int]]:
    """Group samples, by index, into the batches that `pack` makes; a batch may have none."""
    rows = [_rows(sample) for sample in samples]
    longest = max(range(len(rows)), key=rows.__getitem__, default=0)
    if rows and rows[longest] > tokens_per_batch:
        raise ValueError(
            f"question {samples[longest].question_id!r}: a sequence of {rows[longest]} tokens does "
            f"not fit memory.tokens_per_batch = {tokens_per_batch}"
        )
    count = -(-sum(rows) // (tokens_per_batch * parts)) * parts
    while True:
        dealt = balance(rows, count)
        if all(sum(rows[i] for i in batch) <= tokens_per_batch for batch in dealt):
            return dealt
        count += parts


def _rows(sample: TrainSample) -> int:
    return len(sample.token_ids) - 1


def batch_of(samples: Sequence[TrainSample], weights: Sequence[float]) -> PackedBatch:
    """Pack the samples one after the other; ``weights`` are those of their tokens."""
    if not samples:  # a rank's share of nothing: it goes through the model as any other does
        zero = (0.0,)
        nothing = TrainSample(
            "",
            (0, 0),
            (False, True),
            zero,
            zero,
            old_logprobs=zero,
            returns=zero,
            values=zero,
            policy_factors=zero,
            ratio_penalties=zero,
        )
        samples, weights = [nothing], [0.0]
    token_ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    token_weights: list[float] = []
    temperatures: list[float] = []
    for sample, weight in zip(samples, weights, strict=True):
        trained = sample.trained[1:]
        token_ids += sample.token_ids[:-1]
        positions += range(_rows(sample))
        targets += [t if on else -100 for t, on in zip(sample.token_ids[1:], trained, strict=True)]
        token_weights += [weight if on else 0.0 for on in trained]
        temperatures += [sample.temperature or 0.0] * len(trained)
    return PackedBatch(
        token_ids_T=torch.tensor(token_ids),
        positions_T=torch.tensor(positions),
        cu_seqlens=torch.tensor(
            list(accumulate((_rows(s) for s in samples), initial=0)), dtype=torch.int32
        ),
        longest=max(map(_rows, samples)),
        targets_T=torch.tensor(targets),
        sampler_logp_T=_vector(samples, [s.logprobs for s in samples]),
        old_logp_T=_known(samples, [s.old_logprobs for s in samples]),
        advantages_T=_vector(samples, [s.advantages for s in samples]),
        token_weights_T=torch.tensor(token_weights),
        temperature_T=torch.tensor(temperatures) if any(temperatures) else None,
        returns_T=_known(samples, [s.returns for s in samples]),
        values_T=_known(samples, [s.values for s in samples]),
        policy_factors_T=_known(samples, [s.policy_factors for s in samples]),
        ratio_penalty_T=_known(samples, [s.ratio_penalties for s in samples]),
        support_TM=_supports(samples),
    )


def _known(
    samples: Sequence[TrainSample], values_S: Sequence[Sequence[float] | None]
) -> torch.Tensor | None:
    """Lay out what every sample knows; None where one does not."""
    known = [values for values in values_S if values is not None]
    return _vector(samples, known) if len(known) == len(samples) else None


def _supports(samples: Sequence[TrainSample]) -> torch.Tensor | None:
    """Lay out what could have been drawn in each trained row, [T, M] padded with -1."""
    known = [s.support for s in samples if s.support is not None]
    if not known:
        return None
    width = max(max(support.counts) for support in known)
    rows_TM = np.full((sum(map(_rows, samples)), width), -1, np.int32)
    start = 0
    for sample in samples:
        if sample.support is not None:
            counts_n = np.array(sample.support.counts)
            own_nM = np.full((len(counts_n), width), -1, np.int32)
            own_nM[np.arange(width) < counts_n[:, None]] = sample.support.ids
            rows_TM[start + np.flatnonzero(sample.trained[1:])] = own_nM
        start += _rows(sample)
    return torch.from_numpy(rows_TM)


def _vector(samples: Sequence[TrainSample], values_S: Sequence[Sequence[float]]) -> torch.Tensor:
    """Lay out one number per trained token as [T], with 0 on all other rows."""
    rows: list[float] = []
    for sample, values in zip(samples, values_S, strict=True):
        rows += _at_trained(values, sample.trained[1:])
    return torch.tensor(rows)


def _at_trained(values: Sequence[float], trained: Sequence[bool]) -> list[float]:
    """Put the values of the trained rows where those are, and 0 elsewhere."""
    if len(values) != sum(trained):
        raise ValueError(f"{len(values)} numbers for {sum(trained)} trained tokens")
    rest = iter(values)
    return [next(rest) if on else 0.0 for on in trained]


def temperature_of(batch: PackedBatch, usual: float) -> float | torch.Tensor:
    """Return what a batch's tokens were sampled at: ``usual``, or [T] where samples differ."""
    if batch.temperature_T is None:
        return usual
    return torch.where(batch.temperature_T == 0, usual, batch.temperature_T)


def sampled_from(batch: PackedBatch, usual: float) -> dict[str, Any]:
    """Return the head's options that make its distribution the one that was sampled from.

    Args:
        batch: knows what could have been drawn, and temperatures of its own.
        usual: ``rollout.temperature``.
    """
    return {"temperature": temperature_of(batch, usual), "support_TM": batch.support_TM}


def sequence_ids(batch: PackedBatch) -> torch.Tensor:
    """Return the number of each row's sequence in a batch [T], int64 from 0."""
    lengths_S = batch.cu_seqlens.diff()
    ids_S = torch.arange(len(lengths_S), device=lengths_S.device)
    return ids_S.repeat_interleave(lengths_S, output_size=len(batch.token_ids_T))
