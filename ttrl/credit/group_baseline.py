"""Advantages against the group's own answers, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ttrl.credit.advantages import group_advantages, within_group
from ttrl.credit.credit import Assigned
from ttrl.credit.several_rewards import several_advantages
from ttrl.credit.whitening import whitened_by_part
from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import Settings
from ttrl.settings.reward import GroupAdvantages
from ttrl.system.rng import generator
from ttrl.types import (
    CompletionGroup,
    Estimate,
    FinishReason,
    TrainSample,
    part_of,
    writer_of,
)


class GroupBaseline:
    """Compares each answer with the others of its group, and with the step's, where asked for.

    That is GRPO, Dr. GRPO, RLOO, OPO, MaxRL, ReMax, pass@k and REINFORCE++.
    """

    def __init__(self, settings: Settings) -> None:
        """Read ``reward``, ``policy.trained_samples``, ``policy.mask_truncated`` and ``seed``."""
        self.settings = settings
        self.models: dict[str, TrainedModel] = {}
        self.kind = within_group(settings.reward.advantages)
        each = settings.reward.extra_aggregation == "normalize_then_sum"
        self.whitens = each or self.kind != settings.reward.advantages

    def assign(
        self, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate], step: int
    ) -> Assigned:
        """Choose what one update phase trains on, group by group, in sample order.

        Advantages are the estimator's own or, failing that, those of `group_advantages` over all
        votes of one turn, role and policy; `choose` says which completions are trained on. Only
        these are whitened, by the same, where that is asked for. Samples without an advantage
        (everybody agreed, or nobody answered) stay: they count in the means of the loss, and the
        objective knows when they need no forward pass.
        """
        samples: list[TrainSample] = []
        chosen: list[list[int]] = []
        parts: list[object] = []
        for group, estimate in zip(groups, estimates, strict=True):
            advantages_G = self._advantages(group, estimate)
            chosen.append(choose(group, estimate, advantages_G, self.settings, step))
            samples += [sample_of(group, i, advantages_G[i], estimate.weight) for i in chosen[-1]]
            parts += [part_of(group.completions[i]) for i in chosen[-1]]
        if self.whitens:
            samples = whitened_by_part(samples, [s.advantages for s in samples], parts)
        return Assigned(samples, chosen)

    def _advantages(self, group: CompletionGroup, estimate: Estimate) -> tuple[float, ...]:
        if estimate.advantages_G is not None:
            return estimate.advantages_G
        compare = partial(advantages_by_part, group, kind=self.kind, greedy=estimate.greedy_reward)
        return several_advantages(estimate, self.settings.reward, compare)


def advantages_by_part(
    group: CompletionGroup,
    rewards_G: Sequence[float],
    kind: GroupAdvantages,
    greedy: float | None = None,
) -> list[float]:
    """Compute `group_advantages` of each turn, role and policy in a group by itself.

    Args:
        group: the completions.
        rewards_G: one reward per completion.
        kind: how they are compared.
        greedy: the reward of the greedy answer, which some kinds need.

    Returns:
        One advantage per completion, without unit; 0 for those that nothing is compared with.
    """
    advantages_G = [0.0] * len(rewards_G)
    for part in group.parts:
        rewards = [rewards_G[i] for i in part]
        lengths = [len(group.completions[i].token_ids) for i in part]
        own = group_advantages(rewards, kind, lengths, greedy)
        for i, advantage in zip(part, own, strict=True):
            advantages_G[i] = advantage
    return advantages_G


def sample_of(group: CompletionGroup, i: int, advantage: float, weight: float) -> TrainSample:
    """Make the sample of a group's ``i``-th completion."""
    completion = group.completions[i]
    sample = TrainSample.of_answer(
        group.question.id,
        group.prompt_of(i).prompt_ids,
        completion.token_ids,
        completion.logprobs,
        advantage,
        weight,
        completion.temperature,
        completion.support,
    )
    writer = writer_of(completion)
    return replace(sample, policy=writer) if writer else sample


def choose(
    group: CompletionGroup,
    estimate: Estimate,
    advantages_G: Sequence[float],
    settings: Settings,
    step: int,
) -> list[int]:
    """Return the indices of a group's completions that are trained on, in sample order.

    ``policy.trained_samples`` of those that the estimator keeps, and that were not cut off where
    ``policy.mask_truncated``, or all if they are fewer, by ``reward.selection``:

    - ``first``: the first ones, as in the paper.
    - ``random``: drawn anew in each step, from a stream of their own.
    - ``balanced``: the first with a positive advantage, and the first without; half of each (of an
      odd number, one less with), unless there are too few of one kind.
    """
    keep_G = estimate.keep_G or (True,) * len(estimate.rewards_G)
    kept = [i for i, keep in enumerate(keep_G) if keep]
    if settings.policy.mask_truncated:
        kept = [i for i in kept if group.completions[i].finish_reason is not FinishReason.LENGTH]
    wanted = min(settings.policy.trained_samples, len(kept))
    match settings.reward.selection:
        case "first":
            return kept[:wanted]
        case "random":
            rng = generator(settings.seed, "selection", step, group.question.id)
            return sorted(rng.choice(kept, wanted, replace=False).tolist()) if kept else []
        case "balanced":
            positive = [i for i in kept if advantages_G[i] > 0]
            others = [i for i in kept if advantages_G[i] <= 0]
            quota = max(wanted // 2, wanted - len(others))
            positive = positive[:quota]
            return sorted(positive + others[: wanted - len(positive)])
