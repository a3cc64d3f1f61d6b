"""The likeliest tokens at each place of an answer, as few bytes as they are many."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Self


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """Per token of an answer, what else could have been drawn there, likeliest first.

    Log-probs are those of the distribution that was sampled from; what has probability 0 in it is
    left out, so that places may have different counts.

    Example: of two tokens, the first one of three and the second without a choice,
    ``TopLogprobs.of([((7, 2, 5), (-0.3, -1.7, -2.5)), ((1,), (0.0,))])``; to read it,
    ``for ids, logprobs in top: ...``.
    """

    counts: array[int]
    """Per token of the answer, how many there are: 2 bytes each."""
    ids: array[int]
    """Their token ids, those of all places one after the other: 4 bytes each."""
    logprobs: array[float]
    """Their log-probs in float32, in the same order: 4 bytes each."""
    whole: bool = False
    """Whether these are all tokens that could have been drawn: the support."""

    def __post_init__(self) -> None:
        """Raise a ValueError if the three do not belong together."""
        if not sum(self.counts) == len(self.ids) == len(self.logprobs):
            raise ValueError(
                f"{len(self.ids)} ids and {len(self.logprobs)} log-probs of {sum(self.counts)} "
                "tokens"
            )

    @classmethod
    def of(
        cls,
        places: Iterable[tuple[Sequence[int], Sequence[float]]],
        *,
        whole: bool = False,
    ) -> Self:
        """Take ids and log-probs, likeliest first, of each place; those of -inf are left out."""
        counts, ids, logprobs = array("H"), array("i"), array("f")
        for place_ids, place_logprobs in places:
            known = [x for x in place_logprobs if x > -inf]
            counts.append(len(known))
            ids.extend(place_ids[: len(known)])
            logprobs.extend(known)
        return cls(counts, ids, logprobs, whole)

    def __len__(self) -> int:
        """Count the tokens of the answer."""
        return len(self.counts)

    def __iter__(self) -> Iterator[tuple[Sequence[int], Sequence[float]]]:
        """Yield ids and log-probs of each place."""
        start = 0
        for count in self.counts:
            yield self.ids[start : start + count], self.logprobs[start : start + count]
            start += count
