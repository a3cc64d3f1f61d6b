"""Chain of agents: a solution, what is wrong with it, and a better one."""

from __future__ import annotations

from ttrl.rollout.workflows.acts import Act, Plan
from ttrl.rollout.workflows.conversation import Conversation


class Chain(Conversation):
    """A generator, verifiers, and a refiner, one after the other; each sees all before it.

    A verifier is not asked for an answer. It abstains, or its answer votes like any other.
    """

    def turns(self) -> Plan:
        """Return one agent per turn."""
        count, own = self.settings.rollout.agents, self.settings.agents
        turns = [[Act("generator")]]
        for t in range(1, count - 1):
            before = [(earlier, 0) for earlier in range(t)]
            who = f"verifier {t - 1}"
            turns.append([Act("verifier", own.verify, before, answers=False, agent=who)])
        turns.append([Act("refiner", own.refine, [(t, 0) for t in range(count - 1)])])
        return turns
