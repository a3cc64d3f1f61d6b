"""Which completions are trained on, and with what advantage."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.credit.advantages import group_advantages
from ttrl.settings import Settings
from ttrl.system.rng import generator
from ttrl.types import CompletionGroup, Estimate, TrainSample


def select(
    groups: Sequence[CompletionGroup],
    estimates: Sequence[Estimate],
    settings: Settings,
    step: int,
) -> tuple[list[TrainSample], list[list[int]]]:
    """The samples of one update phase, group by group, in sample order.

    Advantages are the estimator's own or, failing that, those of `group_advantages` over all
    votes; `choose` says which completions are trained on. Samples without an advantage (everybody
    agreed, or nobody answered) stay: they count in the means of the loss, and the policy knows
    when they need no forward pass.

    Args:
        groups: the step's groups.
        estimates: one per group, in the same order.
        settings: ``reward.advantages``, ``reward.selection``, ``policy.trained_samples`` and
            ``seed`` count.
        step: the training step.

    Returns:
        The samples; and per group, the indices of the completions that they are, which the
        ``trained/...`` metrics want to know.
    """
    samples: list[TrainSample] = []
    chosen: list[list[int]] = []
    for group, estimate in zip(groups, estimates, strict=True):
        advantages_G = estimate.advantages_G
        if advantages_G is None:
            advantages_G = group_advantages(estimate.rewards_G, settings.reward.advantages)
        chosen.append(choose(group, estimate, advantages_G, settings, step))
        for i in chosen[-1]:
            completion = group.completions[i]
            samples.append(
                TrainSample(
                    question_id=group.question.id,
                    prompt_ids=group.question.prompt_ids,
                    completion_ids=completion.token_ids,
                    logprobs=completion.logprobs,
                    advantage=advantages_G[i],
                    weight=estimate.weight,
                )
            )
    return samples, chosen


def choose(
    group: CompletionGroup,
    estimate: Estimate,
    advantages_G: Sequence[float],
    settings: Settings,
    step: int,
) -> list[int]:
    """Indices of a group's completions that are trained on, in sample order.

    ``policy.trained_samples`` of those that the estimator keeps, or all if they are fewer, by
    ``reward.selection``:

    - ``first``: the first ones, as in the paper.
    - ``random``: drawn anew in each step, from a stream of their own.
    - ``balanced``: the first with a positive advantage, and the first without; half of each (of an
      odd number, one less with), unless there are too few of one kind.
    """
    keep_G = estimate.keep_G or (True,) * len(estimate.rewards_G)
    kept = [i for i, keep in enumerate(keep_G) if keep]
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
