"""The answers that are trained on, with one reward each, for credits that work token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ttrl.credit.group_baseline import advantages_by_part, choose, sample_of
from ttrl.credit.several_rewards import total_rewards
from ttrl.settings import Settings
from ttrl.types import CompletionGroup, Estimate, TrainSample, UserError, part_of


class Outcomes(NamedTuple):
    """The samples of a step, whose advantages are still to be computed."""

    samples: list[TrainSample]
    """Per chosen answer, a sample with advantages of 0."""
    rewards: list[float]
    """Per sample, what the answer earned."""
    chosen: list[list[int]]
    """Per group, the indices of the chosen answers, which are the next samples in order."""
    parts: list[object]
    """Per sample, its turn, role and policy; see `ttrl.types.part_of`."""

    def compared(self) -> Iterator[list[int]]:
        """Yield the indices of samples that are compared: of one group, turn, role and policy."""
        start = 0
        for indices in self.chosen:
            found: dict[object, list[int]] = {}
            for i in range(start, start + len(indices)):
                found.setdefault(self.parts[i], []).append(i)
            yield from found.values()
            start += len(indices)


def outcomes(
    groups: Sequence[CompletionGroup],
    estimates: Sequence[Estimate],
    settings: Settings,
    step: int,
) -> Outcomes:
    """Choose a step's samples as ``reward.selection`` says; none of questions of weight 0.

    Raises:
        UserError: if an estimator brings advantages of its own, which would be ignored.
    """
    found = Outcomes([], [], [], [])
    for group, estimate in zip(groups, estimates, strict=True):
        if estimate.advantages_G is not None:
            raise UserError(
                f"reward.estimator = {settings.reward.estimator!r} says itself what an answer is "
                f"worth, which reward.advantages = {settings.reward.advantages!r} would ignore: "
                'choose another estimator, or reward.advantages = "mean_std"'
            )
        rewards_G = total_rewards(estimate, settings.reward)
        # Only "balanced" looks at these: who did better than those it is compared with.
        better_G = advantages_by_part(group, rewards_G, "mean")
        left_out = estimate.weight == 0  # by the policy, and so by what is trained beside it
        chosen = [] if left_out else choose(group, estimate, better_G, settings, step)
        found.chosen.append(chosen)
        found.rewards.extend(rewards_G[i] for i in chosen)
        found.parts.extend(part_of(group.completions[i]) for i in chosen)
        found.samples.extend(sample_of(group, i, 0.0, estimate.weight) for i in chosen)
    return found
