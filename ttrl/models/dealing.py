"""Which samples go into which micro-batch: those that begin alike together, where they fit.

What samples have in common at their beginning, the prompt at least, has its rows once per
micro-batch; so they are dealt as bundles. Small ones, that micro-batches and ranks get about as
much to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttrl.system.balance import balance
from ttrl.types import TrainSample

KEYS = 2
"""Keys of a micro-batch over `memory.tokens_per_batch`, at most: attention reads what samples share
from a copy for each of them, and of short answers to a long prompt that would be all of memory."""

BUNDLES = 4
"""Bundles that a micro-batch or a rank should get: the fewer, the less even are they."""

PROMPT_SHARE = 1 / 3
"""Share of a bundle that is prompt, at most, where a micro-batch has room for so much else."""


@dataclass(slots=True)
class Bundle:
    """Samples that begin alike, by index, in sorted order, and what they take."""

    members: list[int]
    rows: int
    """Rows of the model."""
    trained: int
    """Trained tokens."""
    keys: int
    """Keys that their attention reads."""

    @property
    def size(self) -> float:
        """Tokens of a micro-batch that it takes: as many rows, trained tokens, or keys."""
        return max(self.rows, self.trained, self.keys / KEYS)

    def with_also(self, sample: TrainSample, shared: int) -> Bundle:
        """Return the size with one more sample, of which so many rows are there already."""
        rows = len(sample.token_ids) - 1
        return Bundle(
            self.members,
            self.rows + rows - shared,
            self.trained + len(sample.logprobs),
            self.keys + (rows if rows > shared else 0),
        )


def deal(samples: Sequence[TrainSample], tokens_per_batch: int, parts: int = 1) -> list[list[int]]:
    """Group samples, by index, into the fewest micro-batches of like sizes.

    Args:
        samples: what to deal.
        tokens_per_batch: rows and trained tokens of a micro-batch, at most.
        parts: the number of micro-batches is a multiple of it; some may have no samples.

    Raises:
        ValueError: if a sample is longer than a micro-batch.
    """
    rows = [len(sample.token_ids) - 1 for sample in samples]
    longest = max(range(len(rows)), key=rows.__getitem__, default=0)
    if rows and rows[longest] > tokens_per_batch:
        raise ValueError(
            f"question {samples[longest].question_id!r}: a sequence of {rows[longest]} tokens does "
            f"not fit memory.tokens_per_batch = {tokens_per_batch}"
        )
    even = min(tokens_per_batch, sum(rows) // parts) // BUNDLES
    bundles = bundle(samples, even, tokens_per_batch)
    sizes = [b.size for b in bundles]
    count = -(-int(sum(sizes)) // (tokens_per_batch * parts)) * parts
    while True:
        dealt = balance(sizes, count)
        if all(sum(sizes[i] for i in part) <= tokens_per_batch for part in dealt):
            return [[i for item in part for i in bundles[item].members] for part in dealt]
        count += parts


def bundle(samples: Sequence[TrainSample], even: int, tokens_per_batch: int) -> list[Bundle]:
    """Put samples with the same prompt together, into bundles of at most about ``even`` tokens.

    More, up to a micro-batch, where the prompt would be more than its share of them.
    """
    order = sorted(range(len(samples)), key=lambda i: samples[i].token_ids)
    bundles: list[Bundle] = []
    last: tuple[int, ...] | None = None
    for i, shared in zip(order, common_rows([samples[i] for i in order]), strict=True):
        sample = samples[i]
        prompt = sample.token_ids[: sample.prompt_length]
        if prompt == last:
            grown = bundles[-1].with_also(sample, shared)
            most = max(even, min(len(prompt) / PROMPT_SHARE, tokens_per_batch))
            if grown.size <= most:
                grown.members.append(i)
                bundles[-1] = grown
                continue
        bundles.append(Bundle([i], 0, 0, 0).with_also(sample, 0))
        last = prompt
    return bundles


def common_rows(ordered: Sequence[TrainSample]) -> list[int]:
    """Count the rows that each of some sorted samples shares with the one before it.

    The last token of a sample has no row.
    """
    counts, before = [], np.empty(0, np.int64)
    for sample in ordered:
        own = np.array(sample.token_ids[:-1])
        most = min(len(own), len(before))
        differs = np.flatnonzero(own[:most] != before[:most])
        counts.append(int(differs[0]) if len(differs) else most)
        before = own
    return counts
