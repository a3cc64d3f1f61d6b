"""What the free pass of a step cost, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean

from ttrl.types import CompletionGroup, Estimate


def free_pass_metrics(
    groups: Sequence[CompletionGroup], estimates: Sequence[Estimate]
) -> dict[str, float]:
    """Compute the figures of a label source that asks the policy; none of them needs a label."""
    passes = list(chain.from_iterable(group.passes for group in groups))
    return {
        "free_pass/prompts": float(len(passes)),
        "free_pass/tokens": float(sum(len(c.token_ids) for p in passes for c in p.completions)),
        "free_pass/unlabelled_share": fmean(e.label is None for e in estimates),
        "free_pass/overruled_share": fmean(map(_overruled, estimates)),
    }


def _overruled(estimate: Estimate) -> bool:
    """Say whether the label, a voter's own spelling, is another answer than the majority."""
    votes = zip(estimate.vote.answers_G, estimate.vote.clusters_G, strict=True)
    return any(answer == estimate.label and cluster != 0 for answer, cluster in votes if answer)
