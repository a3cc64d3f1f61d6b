"""Shapes rewards of answers in turns: what an answer adds to those before it (MARTI).

A trajectory's raw rewards are R[turn][agent]. Nothing here knows of answers or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ttrl.settings.agents import AgentSettings
from ttrl.types import CompletionGroup, Turn, UserError


def shaped_rewards(
    group: CompletionGroup, rewards_G: Sequence[float], settings: AgentSettings
) -> tuple[float, ...] | None:
    """Compute the shaped rewards of a group; None where nothing is shaped.

    Raises:
        UserError: as `shaped` does.
    """
    turns = [c.turn for c in group.completions]
    if not any(turns) or (settings.shaping == "none" and settings.outcome_coef == 0):
        return None
    trajectories: dict[int, list[int]] = {}
    for i, turn in enumerate(turns):
        if turn is not None:
            trajectories.setdefault(turn.trajectory, []).append(i)
    found = list(rewards_G)
    for places in trajectories.values():
        own = [turn for i in places if (turn := turns[i]) is not None]
        worth = shaped([rewards_G[i] for i in places], own, settings)
        for i, value in zip(places, worth, strict=True):
            found[i] = value
    return tuple(found)


def shaped(
    rewards: Sequence[float], turns: Sequence[Turn], settings: AgentSettings
) -> tuple[float, ...]:
    """Compute the shaped rewards of one trajectory.

    With R the reward of an answer, Q the mean reward of all answers of the trajectory's earlier
    turns, a = ``shaping_coef``, b = ``outcome_coef`` and L what the last turn earns:

        none     R + b L
        margin   R + a (R - Q) + b L
        quality  R + a (Q R - (1 - Q) (1 - R)) + b L

    The first turn has nothing before it: there it is R + b L. L is the reward of the last turn's
    answer of the same agent in the same role, as in a debate, or else the mean of that turn.

    Args:
        rewards: one for each answer.
        turns: where each stands, all in the same trajectory.
        settings: which shaping.

    Raises:
        UserError: for a reward outside 0 to 1 with ``quality``, which takes it for a probability.
    """
    if settings.shaping == "quality" and not all(0 <= r <= 1 for r in rewards):
        wrong = next(r for r in rewards if not 0 <= r <= 1)
        raise UserError(
            f'agents.shaping = "quality": the estimator paid {wrong:g}, expected 0 to 1: use '
            'reward.estimator = "majority" or another one of that range, or agents.shaping = '
            '"margin"'
        )
    a, last = settings.shaping_coef, max(turn.index for turn in turns)
    found = []
    for reward, turn in zip(rewards, turns, strict=True):
        earlier = [r for r, t in zip(rewards, turns, strict=True) if t.index < turn.index]
        value = reward
        if earlier and settings.shaping != "none":
            q = fmean(earlier)
            margin = settings.shaping == "margin"
            value += a * (reward - q if margin else q * reward - (1 - q) * (1 - reward))
        ends = [(r, t) for r, t in zip(rewards, turns, strict=True) if t.index == last]
        own = [r for r, t in ends if (t.agent, t.role) == (turn.agent, turn.role)]
        found.append(value + settings.outcome_coef * fmean(own or [r for r, _ in ends]))
    return tuple(found)
