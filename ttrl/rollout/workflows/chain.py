"""Chain of agents: a solution, what is to be said of it, and a better one."""

from __future__ import annotations

from ttrl.rollout.workflows.acts import Act, Plan
from ttrl.rollout.workflows.conversation import Conversation
from ttrl.settings.agents import VERIFIER


class Chain(Conversation):
    """A generator, those who read it, and one who has the last word, one after the other.

    Each sees all before it. Those between are not asked for an answer to the question. What they do
    is ``agents.chain``; but for verdicts (`ttrl.rewards.verdicts`), an answer that one of them
    gives all the same is one like any other.
    """

    def turns(self) -> Plan:
        """Return one agent per turn."""
        count, own = self.settings.rollout.agents, self.settings.agents
        role, between, last_role, last = {
            "roles": (VERIFIER, own.verify, "refiner", own.refine),
            "role_free": ("agent", own.act, "agent", own.conclude),
            "verdict": (VERIFIER, own.judge, "refiner", own.refine),
        }[own.chain]
        turns = [[Act("generator")]]
        for t in range(1, count - 1):
            before = [(earlier, 0) for earlier in range(t)]
            turns.append([Act(role, between, before, answers=False, agent=f"{role} {t - 1}")])
        who = f"{last_role} {count - 2 if last_role == role else 0}"
        turns.append([Act(last_role, last, [(t, 0) for t in range(count - 1)], agent=who)])
        return turns
