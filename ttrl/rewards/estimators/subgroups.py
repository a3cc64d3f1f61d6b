"""A label per sample: subgroups of a question's answers vote for themselves, by confidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, ClassVar

from pydantic import Field

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.rewards.estimators.readings import spelling
from ttrl.system.rng import generator
from ttrl.types import Completion, Estimate, UserError, VotedGroup

Cluster = int | None
"""An equivalence class of the vote; None: an abstention, or no label."""


@register("scope")
class Scope(Estimator):
    """SCOPE (arXiv 2512.15146): each subgroup has the label of a vote weighted by confidence.

    The n answers are divided into subgroups of g in sample order. Of each, the label is

        argmax_a Σ_{i in S, answer_i ≡ a} C_i,   S: n / 2 of the n answers, drawn for this subgroup

    with the confidence C_i = mean over tokens of -(mean log-prob of the ``top`` likeliest tokens),
    which is high where one token stands out. Agreeing with one's own subgroup's label earns 1.

    A small g gives many labels, a large one few. Of all divisors g of n those are considered that
    no other one beats in both: R, the share of answers that are rewarded, and D, the number of
    different labels. With each scaled to 0 to 1 over all g, the smallest
    √(λ(1 - R)² + (1 - λ)(1 - D)²) wins; of equal ones the largest g.

    The paper averages confidence over the steps of a text (between blank lines) first; ours is over
    all tokens. It chooses g for a whole batch; a question does not know the others here. Its
    distance is not stated; ours is the weighted Euclidean one. The label that is reported is that
    of most answers; ``policy.trained_samples`` should be ``rollout.votes``.
    """

    uses_label: ClassVar[bool] = False
    many_labels: ClassVar[bool] = True
    uses_logprobs: ClassVar[bool] = True

    top: Annotated[int, Field(ge=2, le=20)] = 20
    """The likeliest tokens of each place, which engines note: 8 bytes each in the record."""
    quality: Annotated[float, Field(ge=0, le=1)] = 0.7
    """λ: weight of the share that is rewarded, against the number of labels."""

    @property
    def top_logprobs(self) -> int:
        """How many of the likeliest tokens engines are to note."""
        return self.top

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[answer_i ≡ label of its subgroup], for the g that the class says."""
        vote, n = voted.vote, len(voted.vote.answers_G)
        confidence_G = [confidence(completion) for completion in voted.group.completions]
        rng = generator(*voted.stream)
        labels: dict[int, list[Cluster]] = {}  # by g
        for g in (g for g in range(1, n + 1) if n % g == 0):
            drawn = [rng.permutation(n)[: max(1, n // 2)].tolist() for _ in range(n // g)]
            elected = [elect(vote.clusters_G, confidence_G, members) for members in drawn]
            labels[g] = [label for label in elected for _ in range(g)]
        rewards = {g: rewards_of(vote.clusters_G, own) for g, own in labels.items()}
        points = [(fmean(rewards[g]), len({*labels[g]} - {None})) for g in labels]
        size = list(labels)[choose(points, self.quality)]
        chosen = labels[size]
        known = Counter(label for label in chosen if label is not None)
        usual = min(known, key=lambda label: (-known[label], label), default=None)
        names = {label: spelling(vote, label) for label in known}
        return Estimate(
            vote=vote,
            rewards_G=tuple(rewards[size]),
            label=None if usual is None else names[usual],
            labels_G=tuple(None if label is None else names[label] for label in chosen),
            confidence=0.0 if usual is None else known[usual] / n,
            metrics={
                "subgroup_size": float(size),
                "subgroup_labels": float(len(known)),
                "token_confidence": fmean(confidence_G),
            },
        )


def confidence(completion: Completion) -> float:
    """Compute the mean over a completion's tokens of -(mean log-prob of the likeliest tokens).

    Raises:
        UserError: if those were not noted.
    """
    if completion.top_logprobs is None:
        raise UserError(
            'reward.estimator = "scope" needs the likeliest tokens of each place, which the engine '
            "that sampled these answers has not noted"
        )
    return fmean(-math.fsum(logprobs) / len(logprobs) for _, logprobs in completion.top_logprobs)


def elect(
    clusters_G: Sequence[Cluster], weights_G: Sequence[float], members: Sequence[int]
) -> Cluster:
    """Return the class with the largest weight among ``members``; of equal ones the first."""
    own = {cluster for i in members if (cluster := clusters_G[i]) is not None}
    sums = {
        cluster: math.fsum(weights_G[i] for i in members if clusters_G[i] == cluster)
        for cluster in sorted(own)
    }
    return max(sums, key=sums.__getitem__, default=None)


def rewards_of(clusters_G: Sequence[Cluster], labels_G: Sequence[Cluster]) -> list[float]:
    """Compute 1 for each answer that is of the class of its own label; abstentions earn nothing."""
    pairs = zip(clusters_G, labels_G, strict=True)
    return [float(cluster is not None and cluster == label) for cluster, label in pairs]


def choose(points: Sequence[tuple[float, float]], quality: float) -> int:
    """Return the index of the point nearest to the best of both coordinates, see `Scope`."""
    lows, highs = (tuple(pick(xs) for xs in zip(*points, strict=True)) for pick in (min, max))

    def distance(i: int) -> float:
        missing = [
            (high - x) / (high - low) if high > low else 0.0
            for x, low, high in zip(points[i], lows, highs, strict=True)
        ]
        return math.sqrt(quality * missing[0] ** 2 + (1 - quality) * missing[1] ** 2)

    front = [
        i
        for i, (r, d) in enumerate(points)
        if not any(s >= r and e >= d and (s, e) != (r, d) for s, e in points)
    ]
    return min(front, key=lambda i: (distance(i), -i))
