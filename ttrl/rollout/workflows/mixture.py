"""Mixture of agents: several answer, and one makes an answer of theirs."""

from __future__ import annotations

from ttrl.rollout.workflows.acts import Act, Plan
from ttrl.rollout.workflows.conversation import Conversation


class Mixture(Conversation):
    """N generators and an aggregator, who has the last word (arXiv 2406.04692, with one layer)."""

    def turns(self) -> Plan:
        """Return the generators, then the aggregator, who sees all of them."""
        count = self.settings.rollout.agents
        before = [(0, a) for a in range(count)]
        aggregator = Act("aggregator", self.settings.agents.mixture, before)
        return [[Act("generator")] * count, [aggregator]]
