"""Which engine, or which rank, samples which question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ttrl.types import Question


def spread(
    questions: Sequence[Question], expected: Mapping[str, float], parts: int
) -> list[list[int]]:
    """Share questions out, so that all parts are done at about the same time.

    The longest question left goes to the part that has least to do: no part then has more to do
    than another by more than one question.

    Args:
        questions: to be sampled, all equally often.
        expected: question id -> tokens that one of its answers has, as far as is known; the others
            count as the mean of the known ones. Longer prompts go first where this says nothing.
        parts: how many engines or ranks there are.

    Returns:
        Per part, indices into ``questions``, longest first; a part may be empty. The same
        arguments give the same shares, so that every rank can work them out by itself.
    """
    known = [expected[q.id] for q in questions if q.id in expected]
    usual = fmean(known) if known else 1.0
    tokens = [expected.get(q.id, usual) for q in questions]
    order = sorted(
        range(len(questions)), key=lambda i: (-tokens[i], -len(questions[i].prompt_ids), i)
    )
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for i in order:
        least = min(range(parts), key=lambda p: (loads[p], len(shares[p])))
        shares[least].append(i)
        loads[least] += tokens[i]
    return shares
