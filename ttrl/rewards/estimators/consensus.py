"""Distrust of weak majorities: reward less, abstain, or punish where few agree."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, ClassVar

from pydantic import Field

from ttrl.credit.advantages import group_advantages
from ttrl.rewards.estimators.base import Estimator, register
from ttrl.rewards.estimators.readings import class_means, surprisal
from ttrl.types import Estimate, VotedGroup

Share = Annotated[float, Field(ge=0, le=1)]


@register("scrl")
class Scrl(Estimator):
    """SCRL (arXiv 2603.19880), with its two-valued rewards: reward only a clear consensus.

    Of all votes, abstentions included: +1 for agreeing with the label, if the label's share is at
    least tau_pos and leads every other answer by more than tau_margin. -1 for an answer that
    disagrees with a label so accepted (or with none), if its share is below tau_low and its mean
    uncertainty is at least that of the group. Else 0, and 0 for abstentions.

    The paper's uncertainty is the mean token entropy, ours the surprisal of the sampled tokens;
    its graded rewards are left out. A 0 stays a 0 only with ``reward.advantages = "none"``;
    GRPO's advantages, which the paper uses, also push against it where others earn 1.
    """

    uses_logprobs: ClassVar[bool] = True

    tau_pos: Share = 0.5
    """Smallest share of a label that is believed."""
    tau_margin: Share = 0.15
    """Lead over the next answer that the label's must exceed."""
    tau_low: Share = 0.15
    """Answers with a smaller share may be punished."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i, which is 1, 0 or -1: see the class."""
        vote = voted.vote
        votes = vote.votes
        backers = vote.backers(voted.agrees_G)
        rivals = Counter(
            cluster
            for cluster, agrees in zip(vote.cast_G, voted.agrees_G, strict=True)
            if cluster is not None and not agrees
        )
        margin = (backers - max(rivals.values(), default=0)) / votes
        believed = backers > 0 and backers / votes >= self.tau_pos and margin > self.tau_margin
        surprisals = [surprisal(c) for c in voted.group.completions]
        usual = math.fsum(surprisals) / len(surprisals)
        doubtful = {
            cluster
            for cluster, doubt in enumerate(class_means(vote, surprisals))
            if vote.counts[cluster] / votes < self.tau_low and doubt >= usual
        }
        rewards_G = tuple(
            1.0 if believed and agrees else -float(cluster in doubtful)
            for cluster, agrees in zip(vote.clusters_G, voted.agrees_G, strict=True)
        )
        return Estimate(
            vote=vote,
            rewards_G=tuple(reward + 0.0 for reward in rewards_G),  # no -0.0
            label=voted.label if believed else None,
            confidence=backers / votes,
            metrics={
                "believed": float(believed),
                "negative_share": rewards_G.count(-1.0) / len(rewards_G),
            },
        )


@register("restrain")
class Restrain(Estimator):
    """RESTRAIN (arXiv 2510.02172): every answer is a pseudo-label, weighted by its support.

    With n completions, c_j votes for answer j, and g(f) = exp(-(f - 1)² / 2 sigma²):

        w_j = g(c_j / n) / Σ_k g(c_k / n)
        A_i = Σ_j w_j A_ij, where A_ij is GRPO's advantage for the rewards 1[answer_i ≡ answer_j]
        weight = g(share of the question's first vote)

    Where even the largest class has fewer than kappa votes, all rewards are 0 and A_i = -delta,
    for abstentions too: nothing that the model said is to be trusted.

    The paper sums the losses of all pseudo-labels; to sum their advantages is the same up to the
    clipping of ratios. It takes the question's weight from votes of the frozen starting model;
    we take it from the first vote in the run's history, or at a first visit from the present vote,
    which is the starting model's in the first step. Centre and defaults are ours. The group's
    label is not looked at; the one that is reported is the majority.
    """

    uses_label: ClassVar[bool] = False
    own_advantages: ClassVar[bool] = True

    sigma: Annotated[float, Field(ge=1e-3)] = 0.25
    """Width of g: small, and the majority takes all the weight."""
    kappa: Annotated[int, Field(ge=0)] = 3
    """Votes that the largest class must have."""
    delta: Annotated[float, Field(ge=0)] = 1.0
    """Penalty where the largest class has fewer votes than ``kappa``."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = w of its own answer; advantages and weight as in the class."""
        vote = voted.vote
        votes = len(vote.answers_G)
        trusted = bool(vote.counts) and vote.counts[0] >= self.kappa
        rewards_G, advantages_G = (0.0,) * votes, (0.0 if trusted else -self.delta,) * votes
        if trusted:
            # Relative to the largest class, so that a small sigma cannot make every term 0.
            top = self._log_g(vote.majority_ratio)
            g = [math.exp(self._log_g(count / votes) - top) for count in vote.counts]
            weights = [term / math.fsum(g) for term in g]
            rewards_G = tuple(0.0 if c is None else weights[c] for c in vote.clusters_G)
            per_label = [
                group_advantages([float(c == label) for c in vote.clusters_G], "mean_std")
                for label in range(len(weights))
            ]
            advantages_G = tuple(
                math.fsum(w * a for w, a in zip(weights, column, strict=True))
                for column in zip(*per_label, strict=True)
            )
        first = voted.history[0].majority_ratio if voted.history else vote.majority_ratio
        return Estimate(
            vote=vote,
            rewards_G=rewards_G,
            label=vote.majority,
            advantages_G=advantages_G,
            weight=math.exp(self._log_g(first)),
            confidence=vote.majority_ratio,
            metrics={"penalized": float(not trusted)},
        )

    def _log_g(self, ratio: float) -> float:
        return -((ratio - 1) ** 2) / (2 * self.sigma**2)
