"""The free pass of a step: what a label source asks the policy for, sampled and kept."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ttrl.data.free_prompts import FreePrompts, Request
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import voting
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, CompletionGroup, Question


@dataclass(slots=True)
class FreePass:
    """Asks the policy by the rollout's own pool; see `ttrl.rewards.free_pass.AskPolicy`.

    The requests of all ranks are one batch, so that the pool spreads them over its engines like
    questions. A reply depends on (seed, step, name, question, index) alone.
    """

    settings: Settings
    prompts: FreePrompts
    pool: RolloutPool
    ranks: Ranks
    """As the thread that samples talks to them."""
    step: int
    groups: dict[str, list[CompletionGroup]] = field(default_factory=lambda: defaultdict(list))
    """All replies, by the id of the question that they are about."""
    seconds: float = 0.0
    """Time that they have taken."""

    def __call__(
        self,
        name: str,
        requests: Sequence[Request],
        *,
        n: int,
        max_new_tokens: int,
        answers: bool = False,
    ) -> list[tuple[Completion, ...]]:
        """Return ``n`` replies to each request of this rank; see `AskPolicy`."""
        begun = time.perf_counter()
        own: list[tuple[str, Question | None]] = []
        about: dict[str, int] = defaultdict(int)
        for request in requests:
            question = request.question.id
            id = f"{question}/{name}/{about[question]}"
            about[question] += 1
            prompt = self.prompts.prompt(request, id, max_new_tokens, answers=answers)
            own.append((question, prompt))
        asked: dict[str, tuple[str, Question]] = {}  # ranks that share an engine ask for the same
        for part in self.ranks.gather(own):
            asked |= {q.id: (about_id, q) for about_id, q in part if q is not None}
        replies: dict[str, tuple[Completion, ...]] = {}
        if asked:
            votes = voting(self.settings, "free", self.step, name)
            params = replace(votes, n=n, max_new_tokens=max_new_tokens, top_logprobs=0)
            for group in self.pool.sample([q for _, q in asked.values()], params):
                self.groups[asked[group.question.id][0]].append(group)
                replies[group.question.id] = group.completions
        self.seconds += time.perf_counter() - begun
        return [() if q is None else replies[q.id] for _, q in own]
