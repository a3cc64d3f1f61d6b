"""What comes out of conversations of agents: the majority of a trajectory's last turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from ttrl.answers import Grader
from ttrl.rewards.vote import majority_vote
from ttrl.types import Completion, CompletionGroup, Estimate, Turn

Metrics = dict[str, float]


def outcomes(
    answers: Sequence[str | None], turns: Sequence[Turn | None], grader: Grader
) -> list[str | None]:
    """Return the answer of each trajectory: the vote of its last turn; None if nobody answers."""
    trajectories: dict[int, dict[int, list[str | None]]] = defaultdict(lambda: defaultdict(list))
    for answer, turn in zip(answers, turns, strict=True):
        if turn is not None:
            trajectories[turn.trajectory][turn.index].append(answer)
    return [
        majority_vote(by_turn[max(by_turn)], grader).majority for by_turn in trajectories.values()
    ]


def read_tokens(completions: Iterable[Completion]) -> int:
    """Count the tokens of the prompts of later turns, each of which is read for one answer."""
    turns = [c.turn for c in completions]
    return sum(len(t.asked.prompt_ids) for t in turns if t is not None and t.asked is not None)


def turn_metrics(group: CompletionGroup, estimate: Estimate) -> Metrics:
    """Compute a group's figures by turn, without labels; {} where nobody answers in turns."""
    turns = [c.turn for c in group.completions]
    rewards: dict[int, list[float]] = defaultdict(list)
    abstained: dict[int, list[bool]] = defaultdict(list)
    prompts: list[int] = []
    cuts: list[int] = []
    said_G: list[object] = list(estimate.vote.answers_G)
    for i, verdict in estimate.verdicts.items():  # which is what was asked for there
        said_G[i] = verdict.right
    for turn, reward, said in zip(turns, estimate.rewards_G, said_G, strict=True):
        if turn is None:
            continue
        rewards[turn.index].append(reward)
        abstained[turn.index].append(said is None)
        if turn.asked is not None:
            prompts.append(len(turn.asked.prompt_ids))
            cuts.append(turn.cut)
    found = {f"agents/reward/turn={t}": fmean(paid) for t, paid in rewards.items()}
    found |= {f"agents/abstention_share/turn={t}": fmean(who) for t, who in abstained.items()}
    if prompts:
        found["agents/prompt_tokens"] = fmean(prompts)
        found["agents/cut_tokens"] = fmean(cuts)
        found["agents/cut_share"] = fmean(cut > 0 for cut in cuts)
    if verdicts := estimate.verdicts.values():
        found["agents/approval_share"] = fmean(verdict.right is True for verdict in verdicts)
    return found


def outcome_metrics(
    group: CompletionGroup, estimate: Estimate, reference: str, grader: Grader
) -> Metrics:
    """Compute the share of trajectories whose outcome is right; {} where there are none."""
    turns = [c.turn for c in group.completions]
    found = outcomes(estimate.vote.answers_G, turns, grader)
    return {"label/outcome_accuracy": fmean(grader.agree(found, reference))} if found else {}
