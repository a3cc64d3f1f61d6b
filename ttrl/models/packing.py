"""From chosen completions to packed micro-batches with one weight per token.

The loss of an optimizer step is a sum over tokens of weight x token loss. All of normalization is
in these weights, computed over the whole step, so that it does not matter how the step is split
into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ttrl.models.dealing import common_rows, deal
from ttrl.types import PackedBatch, PackedSequences, TrainSample

Integers = NDArray[np.int64]
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
    """Pack whole samples into micro-batches of at most ``tokens_per_batch`` rows, of like sizes.

    Args:
        samples: what to train on.
        weights: per sample, the weight of each of its tokens.
        tokens_per_batch: a sample that is longer is an error.
        parts: the number of batches is a multiple of it, so that every rank gets as many
            (``batches[rank::parts]``); where there are too few samples, some have no weight.
    """
    dealt = deal(samples, tokens_per_batch, parts)
    return [batch_of([samples[i] for i in b], [weights[i] for i in b]) for b in dealt]


def batch_of(samples: Sequence[TrainSample], weights: Sequence[float]) -> PackedBatch:
    """Pack the samples, common beginnings once; ``weights`` are those of their tokens."""
    if not samples:  # a rank's share of nothing: it goes through the model as any other does
        samples, weights = [_nothing()], [0.0]
    layout = lay_out(samples)
    trained = [np.flatnonzero(s.trained) for s in samples]
    lengths = [len(at_n) for at_n in trained]
    temperatures = [s.temperature or 0.0 for s in samples]
    return PackedBatch(
        token_ids_R=torch.from_numpy(layout.token_ids_R),
        positions_R=torch.from_numpy(layout.positions_R),
        sequences=layout.sequences,
        samples=len(samples),
        rows_T=_joined([rows[at_n - 1] for rows, at_n in zip(layout.rows, trained, strict=True)]),
        samples_T=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)),
        targets_T=_joined(
            [np.array(s.token_ids)[at_n] for s, at_n in zip(samples, trained, strict=True)]
        ),
        sampler_logp_T=_vector(lengths, [s.logprobs for s in samples]),
        old_logp_T=_known(lengths, [s.old_logprobs for s in samples]),
        advantages_T=_vector(lengths, [s.advantages for s in samples]),
        token_weights_T=_repeated(weights, lengths),
        temperature_T=_repeated(temperatures, lengths) if any(temperatures) else None,
        returns_T=_known(lengths, [s.returns for s in samples]),
        values_T=_known(lengths, [s.values for s in samples]),
        policy_factors_T=_known(lengths, [s.policy_factors for s in samples]),
        ratio_penalty_T=_known(lengths, [s.ratio_penalties for s in samples]),
        support_TM=_supports(samples, lengths),
    )


def _nothing() -> TrainSample:
    """Make a sample that has all that samples can have, and says nothing."""
    zero = (0.0,)
    return TrainSample(
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


class Layout(NamedTuple):
    """The rows of a batch, and which of them are a sample's."""

    token_ids_R: Integers
    positions_R: Integers
    sequences: PackedSequences
    rows: list[Integers]
    """Per sample, the rows of its tokens but the last."""


def lay_out(samples: Sequence[TrainSample]) -> Layout:
    """Lay the samples' tokens one after the other, what several begin with only once.

    In sorted order a sample shares most with the one before it; what is new of it is a sequence.
    """
    tokens: list[tuple[int, ...]] = []
    positions: list[Integers] = []
    keys: list[Integers] = []
    rows: dict[int, Integers] = {}
    ends, before = [0], np.empty(0, np.int64)
    order = sorted(range(len(samples)), key=lambda i: samples[i].token_ids)
    for i, shared in zip(order, common_rows([samples[i] for i in order]), strict=True):
        new = samples[i].token_ids[shared:-1]
        before = rows[i] = np.append(before[:shared], ends[-1] + np.arange(len(new)))
        if new:
            tokens.append(new)
            positions.append(np.arange(shared, shared + len(new)))
            keys.append(before)
            ends.append(ends[-1] + len(new))
    return Layout(
        np.concatenate(tokens),
        np.concatenate(positions),
        _sequences(ends, keys),
        [rows[i] for i in range(len(samples))],
    )


def _sequences(ends: Sequence[int], keys: Sequence[Integers]) -> PackedSequences:
    longest, counts = int(np.diff(ends).max()), [len(seen) for seen in keys]
    ends_of = torch.tensor(ends, dtype=torch.int32)
    if sum(counts) == ends[-1]:  # nothing is shared
        return PackedSequences(ends_of, longest)
    key_ends = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    return PackedSequences(ends_of, longest, _joined(keys), key_ends, max(counts))


def _joined(parts: Sequence[Integers]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _repeated(values_S: Sequence[float], lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.repeat(np.array(values_S, np.float32), lengths))


def _known(
    lengths: Sequence[int], values_S: Sequence[Sequence[float] | None]
) -> torch.Tensor | None:
    """Lay out what every sample knows; None where one does not."""
    known = [values for values in values_S if values is not None]
    return _vector(lengths, known) if len(known) == len(lengths) else None


def _vector(lengths: Sequence[int], values_S: Sequence[Sequence[float]]) -> torch.Tensor:
    """Lay out one number per trained token as [T]."""
    for length, values in zip(lengths, values_S, strict=True):
        if len(values) != length:
            raise ValueError(f"{len(values)} numbers for {length} trained tokens")
    return torch.tensor(list(chain.from_iterable(values_S)))


def _supports(samples: Sequence[TrainSample], lengths: Sequence[int]) -> torch.Tensor | None:
    """Lay out what could have been drawn in each place, [T, M] padded with -1."""
    known = [s.support for s in samples if s.support is not None]
    if not known:
        return None
    width = max(max(support.counts) for support in known)
    places_TM = np.full((sum(lengths), width), -1, np.int32)
    for sample, end in zip(samples, accumulate(lengths), strict=True):
        if sample.support is not None:
            counts_n = np.array(sample.support.counts)
            own_nM = places_TM[end - len(counts_n) : end]
            own_nM[np.arange(width) < counts_n[:, None]] = sample.support.ids
    return torch.from_numpy(places_TM)


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


Packed = TypeVar("Packed", PackedBatch, PackedSequences)


def moved(part: Packed, device: torch.device) -> Packed:
    """Return a batch, or its sequences, with all tensors on ``device``."""
    changed: dict[str, Any] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, PackedSequences):
            changed[f.name] = moved(value, device)
        elif torch.is_tensor(value):
            changed[f.name] = value.to(device)
    return replace(part, **changed)
