"""Balanced groups: as many completions to follow as to avoid."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from ttrl.rewards.estimators.base import Estimator, register
from ttrl.types import Estimate, UserError, VotedGroup


@register("ddrl")
class Ddrl(Estimator):
    """DDRL (arXiv 2604.21327): train on clear cases, with fixed advantages.

    Of a group, K⁺ = min(agreeing, k / 2) completions that agree with the label are kept, and of
    those that disagree the K⁻ = k - K⁺ rarest, where abstentions are the rarest of all; equally
    good ones in sample order. What lies between, the ambiguous answers, is not trained on. The
    advantages are +1 and -1, however lopsided the group is; without a label they are 0.

    Where fewer than K⁻ disagree, fewer than k are kept. The paper's last stage, fine-tuning on
    agreeing completions, is not part of this. ``policy.trained_samples`` should be k.
    """

    own_advantages: ClassVar[bool] = True

    k: Annotated[int, Field(ge=2)] = 32
    """Completions of a group that are kept, at most."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[answer_i ≡ label] and A_i = ±1; keep K⁺ and K⁻.

        Raises:
            UserError: if the group has fewer than k completions.
        """
        vote, agrees_G = voted.vote, voted.agrees_G
        if self.k > len(agrees_G):
            raise UserError(
                f"reward.options.k = {self.k} is more than the {len(agrees_G)} completions of "
                f"question {voted.group.question.id!r}: lower it, or raise rollout.votes (with "
                "rollout.stop_when_decided, a group may be a quarter of the votes)"
            )
        support_G = [0 if c is None else vote.counts[c] for c in vote.clusters_G]
        agreeing = [i for i, agrees in enumerate(agrees_G) if agrees][: self.k // 2]
        others = [i for i, agrees in enumerate(agrees_G) if not agrees]
        rarest = sorted(others, key=support_G.__getitem__)[: self.k - len(agreeing)]
        kept = {*agreeing, *rarest}
        against = 0.0 if voted.label is None else -1.0
        return Estimate(
            vote=vote,
            rewards_G=tuple(float(agrees) for agrees in agrees_G),
            label=voted.label,
            advantages_G=tuple(1.0 if agrees else against for agrees in agrees_G),
            keep_G=tuple(i in kept for i in range(len(agrees_G))),
            confidence=vote.majority_ratio,
            metrics={"kept_agreeing": float(len(agreeing)), "kept_others": float(len(rarest))},
        )
