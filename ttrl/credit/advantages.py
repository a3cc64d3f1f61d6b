"""From a group's rewards to advantages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ttrl.settings.reward import GroupAdvantages, StepAdvantages
from ttrl.types import UserError


def within_group(kind: GroupAdvantages | StepAdvantages) -> GroupAdvantages:
    """Return what is compared within the group, before anything is whitened over the step.

    REINFORCE++ (arXiv 2501.03262) whitens each token's return, which without a discount is the
    reward of its answer; its variant with a baseline, what is left of it when the mean of the group
    is subtracted.

    Raises:
        ValueError: for what compares token by token.
    """
    match kind:
        case "gae" | "prime":
            raise ValueError(f"{kind} is no comparison within a group")
        case "reinforce_pp":
            return "none"
        case "reinforce_pp_baseline":
            return "mean"
        case _:
            return kind


def group_advantages(
    rewards_G: Sequence[float],
    kind: GroupAdvantages,
    lengths_G: Sequence[int] = (),
    greedy: float | None = None,
) -> tuple[float, ...]:
    """Compute how much better each completion did than its group.

    - ``mean_std``: (r - mean) / (std + 1e-6), GRPO (arXiv 2402.03300). The standard
      deviation is the sample's, with G - 1 in the denominator: the papers leave it open, and the
      trainers whose learning rates the recipes take over compute that one.
    - ``mean``: r - mean, Dr. GRPO (arXiv 2503.20783): no question weighs more for being lopsided.
    - ``rloo``: r - mean of the others, RLOO (arXiv 2402.14740): a baseline that a completion has
      no part in. It is G / (G - 1) times ``mean``.
    - ``opo``: r - Σ len·r / Σ len, OPO (arXiv 2505.23585): the baseline of the least variance, if
      the squared gradient of an answer grows with its length.
    - ``pass_at_k``: (r_max - r_2nd) / (std + 1e-6) for the best completion, 0 for all others
      (arXiv 2503.19595): what it adds to the best of the group. Where two are equally good, it
      adds nothing.
    - ``max_rl``: (r - mean) / mean, MaxRL (arXiv 2602.02710): the gradient of the log-likelihood
      of being right, where GRPO has a share of it. Hard questions weigh more.
    - ``remax``: r - reward of a greedy answer, ReMax (arXiv 2310.10505).
    - ``none``: r itself, compared with nothing.

    Equal rewards give zeros, exactly, so that a group with nothing to learn can be recognised;
    except with ``none``, where they can teach something, and ``remax``, if the greedy answer earns
    something else.

    Args:
        rewards_G: one reward per completion.
        kind: which of these.
        lengths_G: each completion's number of tokens; ``opo`` needs them.
        greedy: the reward of the greedy answer; ``remax`` needs it.

    Returns:
        One advantage per completion, without unit.

    Raises:
        UserError: for a reward below 0 with ``max_rl``.
    """
    if kind == "none":
        return tuple(rewards_G)
    if kind == "remax":
        if greedy is None:
            raise ValueError("remax compares with a greedy answer, and there is none")
        return tuple(reward - greedy for reward in rewards_G)
    if kind == "max_rl" and min(rewards_G, default=0.0) < 0:
        raise UserError(
            f'reward.advantages = "max_rl" divides by the mean reward: got a reward of '
            f"{min(rewards_G)}, expected none below 0; choose another, for example "
            '"mean_std"'
        )
    if len(set(rewards_G)) <= 1:  # also a group of one, which has no others
        return (0.0,) * len(rewards_G)
    if kind == "pass_at_k":
        return _of_the_best(rewards_G)
    size = len(rewards_G)
    baseline = mean = math.fsum(rewards_G) / size
    if kind == "opo":
        paid = math.fsum(n * r for n, r in zip(lengths_G, rewards_G, strict=True))
        baseline = paid / sum(lengths_G)
    scale = {
        "mean_std": statistics.stdev(rewards_G) + 1e-6,
        "rloo": (size - 1) / size,
        "max_rl": mean,
    }.get(kind, 1.0)
    return tuple((reward - baseline) / scale for reward in rewards_G)


def _of_the_best(rewards_G: Sequence[float]) -> tuple[float, ...]:
    second, best = sorted(rewards_G)[-2:]
    lead = (best - second) / (statistics.stdev(rewards_G) + 1e-6)
    return tuple(lead if reward == best else 0.0 for reward in rewards_G)
