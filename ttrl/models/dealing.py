"""Which samples go into which micro-batch: those with the same prompt together, where they fit.

A prompt has its rows once per micro-batch, so its samples are dealt as bundles. Small ones, that
micro-batches and ranks get about as much to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ttrl.system.balance import balance
from ttrl.types import TrainSample

KEYS = 2
"""Keys of a micro-batch over its rows, at most: an answer's attention reads the prompt's keys from
a copy of its own, and beside long prompts with many short answers that would be all of memory."""

BUNDLES = 4
"""Bundles that a micro-batch or a rank should get: the fewer, the less even are they."""

PROMPT_SHARE = 1 / 3
"""Share of a bundle's rows that are prompt, at most, where a micro-batch has room for so many."""


class Bundle(NamedTuple):
    """Samples with the same prompt, by index."""

    members: list[int]
    rows: int
    """Rows that they take; at least as many as their trained tokens."""
    keys: int
    """Keys that their attention reads."""


def deal(samples: Sequence[TrainSample], tokens_per_batch: int, parts: int = 1) -> list[list[int]]:
    """Group samples, by index, into the fewest micro-batches of like sizes.

    Args:
        samples: what to deal.
        tokens_per_batch: rows of a micro-batch, at most.
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
    sizes = [b.rows for b in bundles]
    count = -(-sum(sizes) // (tokens_per_batch * parts)) * parts
    while True:
        dealt = balance(sizes, count)
        if all(fits([bundles[i] for i in part], tokens_per_batch) for part in dealt):
            return [[i for item in part for i in bundles[item].members] for part in dealt]
        count += parts


def fits(bundles: Sequence[Bundle], tokens_per_batch: int) -> bool:
    """Say whether a micro-batch has room for these; it has for any sample alone."""
    rows, keys = sum(b.rows for b in bundles), sum(b.keys for b in bundles)
    return rows <= tokens_per_batch and keys <= KEYS * tokens_per_batch


def bundle(samples: Sequence[TrainSample], even: int, tokens_per_batch: int) -> list[Bundle]:
    """Put samples with the same prompt together, into bundles of about ``even`` rows.

    More, up to a micro-batch, where the prompt would be more than its share of them.
    """
    together: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        together.setdefault(sample.token_ids[: sample.prompt_length], []).append(i)
    found: list[Bundle] = []
    for prompt, members in together.items():
        own = [len(samples[i].token_ids) - len(prompt) for i in members]
        most = max(even, min(int(len(prompt) / PROMPT_SHARE), tokens_per_batch))
        count = -(-sum(own) // max(most - len(prompt), *own))
        while True:
            parts = balance(own, count)
            bundles = [
                _bundle([members[j] for j in part], [own[j] for j in part], len(prompt))
                for part in parts
            ]
            if all(fits([b], tokens_per_batch) for b in bundles):
                break
            count += 1
        found += bundles
    return found


def _bundle(members: list[int], own: Sequence[int], prompt: int) -> Bundle:
    """Count what samples of ``own`` tokens take behind a prompt."""
    whole = sum(own) + len(own) * (prompt - 1)
    keys = whole if len(own) == 1 else whole + prompt
    return Bundle(members, prompt + sum(own) - 1, keys)
