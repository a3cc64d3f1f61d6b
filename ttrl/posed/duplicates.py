"""Near-duplicates among questions: clusters of texts that share most of their words."""

from __future__ import annotations

import re
from collections.abc import Sequence


def words_of(text: str) -> frozenset[str]:
    """Return the different words of a text, numbers among them; of one without any, itself."""
    return frozenset(re.findall(r"\w+", text.lower())) or frozenset((text,))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Compute the Jaccard index: words in common, of all words of both."""
    return len(a & b) / len(a | b)


def clusters(texts: Sequence[str], threshold: float, known: Sequence[str] = ()) -> list[int]:
    """Put each text in the cluster of the first leader that is a near-duplicate of the text.

    A text without one leads a cluster of its own. So what a text belongs to depends on those before
    it alone.

    Args:
        texts: the texts, in order.
        threshold: `similarity` from which on two are near-duplicates.
        known: texts that lead clusters already.

    Returns:
        Per text the index of its leader in ``texts``; -1 - i if that is ``known[i]``.
    """
    leaders = [(-1 - i, words_of(text)) for i, text in enumerate(known)]
    found: list[int] = []
    for i, text in enumerate(texts):
        words = words_of(text)
        leader = next((n for n, own in leaders if similarity(own, words) >= threshold), i)
        if leader == i:
            leaders.append((i, words))
        found.append(leader)
    return found
