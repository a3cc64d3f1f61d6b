"""Which completions are trained on, and with what advantage."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.config import Settings
from ttrl.rewards.advantages import group_advantages
from ttrl.types import CompletionGroup, Estimate, TrainSample


def select(
    groups: Sequence[CompletionGroup],
    estimates: Sequence[Estimate],
    settings: Settings,
    step: int,
) -> list[TrainSample]:
    """The samples of one update phase, group by group, in sample order.

    Advantages are the estimator's own or, failing that, those of `group_advantages` over all
    votes. Of each group the first ``policy.trained_samples`` completions that the estimator keeps
    are trained on. Samples without an advantage (everybody agreed, or nobody answered) stay: they
    count in the means of the loss, and the policy knows when they need no forward pass.

    Args:
        groups: the step's groups.
        estimates: one per group, in the same order.
        settings: ``reward.advantages`` and ``policy.trained_samples`` count.
        step: the training step.
    """
    samples = []
    for group, estimate in zip(groups, estimates, strict=True):
        advantages_G = estimate.advantages_G
        if advantages_G is None:
            advantages_G = group_advantages(estimate.rewards_G, settings.reward.advantages)
        for i in trained_indices(estimate, settings.policy.trained_samples):
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
    return samples


def trained_indices(estimate: Estimate, trained_samples: int) -> list[int]:
    """Which of a group's completions are trained on: the first ones that the estimator keeps."""
    keep_G = estimate.keep_G or (True,) * len(estimate.rewards_G)
    return [i for i, keep in enumerate(keep_G) if keep][:trained_samples]
