"""A step's proposals: which are questions, which of these are asked, and what each has earned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ttrl.credit.group_baseline import sample_of
from ttrl.credit.whitening import whiten
from ttrl.data.rows import BadRow
from ttrl.posed.duplicates import clusters
from ttrl.posed.learnability import LEARNABILITY
from ttrl.report.rollouts import sampled_line
from ttrl.settings.posed import PosedSettings
from ttrl.types import CompletionGroup, Question, TrainSample


@dataclass(slots=True)
class Proposal:
    """What the policy has posed, and what has become of it."""

    group: CompletionGroup
    """The replies to its prompt."""
    index: int
    """Which of them it is."""
    question: Question | None
    """What it asks; None: it cannot be asked."""
    reason: str = ""
    """Why it cannot."""
    alike: int = 0
    """Others that are near-duplicates: in the step, and one if there is any in the buffer."""
    is_known: bool = False
    """Whether a near-duplicate is in the buffer, so that it is not asked."""
    leader: str | None = None
    """Id of the question that is, or would be, asked for it and its near-duplicates."""
    reward: float | None = None
    """What it has earned; None: nobody knows, as its question was left out."""
    advantage: float = 0.0
    """Its reward among those of the step's proposals."""


def read_proposals(
    groups: Sequence[CompletionGroup],
    read: Callable[[str, str], Question],
    step: int,
    settings: PosedSettings,
    known: Sequence[str],
) -> list[Proposal]:
    """Read the questions of a step's proposals, and find out which are near-duplicates.

    Args:
        groups: the proposals, prompt by prompt.
        read: makes the question of a reply's text, and an id; raises a `BadRow` where it cannot.
        step: the training step, which ids begin with.
        settings: ``duplicate_similarity`` counts.
        known: texts of the questions in the buffer.
    """
    found: list[Proposal] = []
    for group in groups:
        for i, completion in enumerate(group.completions):
            try:
                question = read(completion.text, f"posed-{step}-{len(found)}")
                found.append(Proposal(group, i, question))
            except BadRow as error:
                found.append(Proposal(group, i, None, str(error)))
    asked = [p for p in found if p.question is not None]
    texts = [p.question.text or "" for p in asked if p.question is not None]
    leaders = clusters(texts, settings.duplicate_similarity, known)
    for proposal, leader in zip(asked, leaders, strict=True):
        proposal.is_known = leader < 0
        proposal.alike = leaders.count(leader) - (leader >= 0)
        first = None if leader < 0 else asked[leader].question
        proposal.leader = None if first is None else first.id
    return found


def distinct(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Return the proposals that lead near-duplicates of which none is in the buffer."""
    return [p for p in proposals if p.question is not None and p.question.id == p.leader]


def reward(
    proposals: Sequence[Proposal], shares: Mapping[str, float], settings: PosedSettings
) -> None:
    """Give proposals their rewards, and advantages among all of them that have one.

    Rewards are whitened over the step's proposals, each of which counts once, as REINFORCE++ does
    it; the solver's answers have no part in that, nor these in theirs.

    Args:
        proposals: the step's.
        shares: per question that was asked, the share of answers that agree with its label.
        settings: ``reward``, ``invalid_reward`` and ``duplicate_penalty`` count.
    """
    learnability = LEARNABILITY[settings.reward]
    for p in proposals:
        penalty = settings.duplicate_penalty * p.alike / len(proposals)
        if p.question is None:
            p.reward = settings.invalid_reward
        elif p.is_known:
            p.reward = -penalty
        elif p.leader is not None and p.leader in shares:
            p.reward = learnability(shares[p.leader]) - penalty
    scored = [(p, p.reward) for p in proposals if p.reward is not None]
    whitened = whiten([(value,) for _, value in scored])
    for (p, _), (advantage,) in zip(scored, whitened, strict=True):
        p.advantage = advantage


def samples_of(proposals: Sequence[Proposal], weight: float) -> list[TrainSample]:
    """Make training samples of the proposals that have a reward; none with a weight of 0."""
    return [
        sample_of(p.group, p.index, p.advantage, weight)
        for p in proposals
        if weight > 0 and p.reward is not None
    ]


def figures(
    proposals: Sequence[Proposal],
    shares: Mapping[str, float],
    settings: PosedSettings,
) -> dict[str, float]:
    """Compute the figures of a step's proposals.

    Figures of shares are over the new questions that were asked, and absent if there were none.
    """
    total = len(proposals)
    new = [
        shares[p.question.id] for p in distinct(proposals) if p.question and p.question.id in shares
    ]
    rewards = [p.reward for p in proposals if p.reward is not None]
    found = {
        "posed/proposals": float(total),
        "posed/valid_share": sum(p.question is not None for p in proposals) / total,
        "posed/distinct_share": len(distinct(proposals)) / total,
        "posed/asked": float(len(new)),
        "posed/tokens": float(sum(len(p.group.completions[p.index].token_ids) for p in proposals)),
    }
    if rewards:
        found["posed/reward"] = fmean(rewards)
    if new:
        found["posed/kept_share"] = fmean(is_kept(share, settings) for share in new)
        found["posed/mean_share"] = fmean(new)
    return found


def is_kept(share: float, settings: PosedSettings) -> bool:
    """Say whether a question is within the band of shares that are trained on."""
    return settings.lowest_share <= share <= settings.highest_share


def lines_of(
    proposals: Sequence[Proposal],
    asked: Mapping[str, float | None],
    answers: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Write proposals as JSON, a line for each prompt, with what is known of them by now.

    Args:
        proposals: the step's.
        asked: per question that was asked, the share of answers that agree; None: not yet known.
        answers: per question, what a checker says; where one does.
    """
    lines: dict[str, dict[str, Any]] = {}
    for p in proposals:
        id = p.group.question.id
        line = lines.setdefault(id, sampled_line(p.group))
        said = line["completions"][p.index]
        said["question"] = None if p.question is None else p.question.text
        said["fate"] = _fate(p, asked)
        if p.question is not None and said["fate"] == "asked" and p.question.id in answers:
            said["answer"] = answers[p.question.id]
        if p.reason:
            said["reason"] = p.reason
        if p.leader is not None and p.leader in asked:
            said |= {"asked_as": p.leader, "share": asked[p.leader]}
        if p.reward is not None:
            said |= {"reward": p.reward, "advantage": p.advantage}
    return list(lines.values())


def _fate(p: Proposal, asked: Mapping[str, float | None]) -> str:
    if p.question is None:
        return "invalid"
    if p.is_known:
        return "known"
    if p.leader not in asked:
        return "left out"
    return "asked" if p.leader == p.question.id else "duplicate"
