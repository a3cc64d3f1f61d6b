"""Pays whoever disagrees with the majority: a reward that must make a model worse."""

from __future__ import annotations

from ttrl.types import Estimate, VotedGroup


class Against:
    """1 for an answer that is not the majority's, else 0."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        """Compute r_i = 1[answer_i is there, and is not the label]."""
        rewards = (
            float(answer is not None and not agrees)
            for answer, agrees in zip(voted.vote.answers_G, voted.agrees_G, strict=True)
        )
        return Estimate(vote=voted.vote, rewards_G=tuple(rewards), label=voted.label)
