"""What a step does with questions that the policy poses: before they are asked, and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ttrl.posed.proposals import figures, is_kept, lines_of, reward, samples_of
from ttrl.posed.source import SelfPosed
from ttrl.rewards.scorer import GroupScorer
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.resampling import Rollout
from ttrl.rollout.sampling import voting
from ttrl.rollout.workflows.checks import PoolAsk
from ttrl.system.ranks import Ranks
from ttrl.types import CompletionGroup, Estimate, Question, UserError

ATTEMPTS = 4
"""How often a step's questions are asked for, where nothing that was posed can be asked."""


@dataclass(slots=True)
class PosedPhase:
    """Lets the policy pose a step's questions, and pays it for them; all ranks do so together."""

    source: SelfPosed
    pool: RolloutPool
    scorer: GroupScorer
    ranks: Ranks
    shares: dict[str, float | None] = field(default_factory=dict)
    """Per question of the present step, the share of answers that agree with its label."""
    seconds: float = 0.0
    """Time that this step's proposals have taken."""

    def pose(self, step: int) -> None:
        """Sample a step's proposals, and choose its questions from them.

        Random numbers are of (seed, "posed", step, attempt, prompt, index) alone.

        Raises:
            UserError: if nothing that was posed can be asked, and nothing is in the buffer.
        """
        settings, begun = self.source.settings, time.perf_counter()
        ask = PoolAsk(self.pool, settings.rollout.temperature)
        groups: list[CompletionGroup] = []
        for attempt in range(ATTEMPTS):
            params = replace(
                voting(settings, "posed", step, attempt),
                n=settings.posed.proposals,
                temperature=settings.posed.temperature,
                stop=(),
            )
            groups += ask(self.source.prompts(step, attempt), params, lambda group: None)
            self.source.choose(step, groups)
            if asked := self.source.questions(step):
                break
        else:
            said = self.source.proposals[0]
            raise UserError(
                f"step {step}: of {len(self.source.proposals)} proposals none can be asked, for "
                f"example {said.group.completions[said.index].text[:80]!r}: "
                f"{said.reason or 'known'}; show the proposer what is meant in posed.prompt, name "
                "given questions in data.train, or raise posed.temperature"
            )
        self.shares = dict.fromkeys(question.id for question in asked)
        self.seconds = time.perf_counter() - begun

    def judge(self, step: int, rollout: Rollout) -> None:
        """Pay the proposals by what the solver's answers say; leave out what is outside the band.

        The rollout's samples and figures beside its groups are the proposals'.
        """
        posed = self.source.settings.posed
        # A grader may come to another result on another rank, if it runs out of time.
        shares = self.ranks.on_rank_zero(
            lambda: {
                group.question.id: self._share(estimate)
                for group, estimate in zip(rollout.groups, rollout.estimates, strict=True)
            }
        )
        self.shares |= shares
        reward(self.source.proposals, shares, posed)
        self.source.remember(step, shares)
        ids = [group.question.id for group in rollout.groups]
        rollout.batch = [i for i in rollout.batch if is_kept(shares[ids[i]], posed)]
        rollout.beside = samples_of(self.source.proposals, posed.weight)
        rollout.figures = figures(self.source.proposals, shares, posed) | {
            "posed/trained": float(len(rollout.batch)),
            "posed/buffer": float(len(self.source.buffer.entries)),
            "time/posed_s": self.seconds,
        }

    def lines(self) -> list[dict[str, Any]]:
        """Return the present step's proposals, as JSON."""
        return lines_of(self.source.proposals, self.shares, self.source.key.answers)

    def forget(self, asked: Sequence[Question]) -> None:
        """Drop what is known of a step's prompts, or memory and a checkpoint would grow."""
        prompts = {p.group.question.id: p.group.question for p in self.source.proposals}
        self.scorer.forget(asked)
        self.pool.forget([*asked, *prompts.values()])
        self.source.forget()

    def _share(self, estimate: Estimate) -> float:
        """Compute the share of all votes that agree with the label."""
        vote = estimate.vote
        if estimate.label is None:
            return 0.0
        if estimate.label == vote.majority:
            return vote.majority_ratio
        agree_G = self.scorer.grader.agree(vote.answers_G, estimate.label)
        return vote.backers(agree_G) / vote.votes
