"""Debate: agents answer, read each other's answers, and answer again."""

from __future__ import annotations

from ttrl.rollout.workflows.acts import Act, Plan
from ttrl.rollout.workflows.conversation import Conversation


class Debate(Conversation):
    """N equal debaters, R rounds; the last round's majority is what comes out (arXiv 2305.14325).

    A debater sees its own answer of the round before, and those of ``agents.others`` others.
    """

    def turns(self) -> Plan:
        """Return N debaters per round."""
        rollout, own = self.settings.rollout, self.settings.agents
        rounds = [[Act("debater")] * rollout.agents]
        for t in range(1, rollout.rounds):
            before = [(t - 1, a) for a in range(rollout.agents)]
            rounds.append([Act("debater", own.debate, before, others=own.others)] * rollout.agents)
        return rounds
