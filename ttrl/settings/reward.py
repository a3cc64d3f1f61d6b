"""The section [reward]: from answers to advantages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Positive, Section

GroupAdvantages = Literal["mean_std", "mean", "rloo", "opo", "pass_at_k", "max_rl", "remax", "none"]
"""Ways to compare an answer with its own group."""
StepAdvantages = Literal["reinforce_pp", "reinforce_pp_baseline", "gae", "prime"]
"""Ways that look at all of a step's tokens."""
TOKEN_ADVANTAGES = ("gae", "prime")
"""Ways that pay token by token, each with a model that is trained beside the policy."""
FREE_PASS_LABELS = ("harmony", "reflection")
"""Labels for which the policy is asked about a step's answers, see `ttrl.rewards.free_pass`."""


class RewardSettings(Section):
    """Settings of the way from answers to advantages."""

    estimator: str = "majority"
    """How votes become rewards: a name that `ttrl.rewards.estimators` registers, or
    FILE.py:CLASS for your own."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The estimator's own settings, by name."""
    labels: Literal["votes", "teacher", "harmony", "reflection", "checker", "ground_truth"] = (
        "votes"
    )
    """Whom an answer must agree with: the voters' majority; the majority of a teacher's answers
    (see ``teacher_decay``); the answer that question and paraphrase agree on (see [harmony]); the
    one that the policy picks when it has read them all (see [reflection]); what ``posed.form``
    computes, of questions that the policy poses itself; or the reference answers, the upper bound
    of the paper."""
    teacher_decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The teacher's weights are decay x its own + (1 - decay) x the policy's after every step; 1
    keeps the starting model, whose labels are then sampled once per question."""
    allow_ground_truth: bool = False
    """Must be true for ``labels = "ground_truth"``: training then reads reference answers."""
    advantages: Literal[GroupAdvantages, StepAdvantages] = "mean_std"
    """mean_std: reward minus the group's mean, by the group's standard deviation (GRPO). mean:
    without the division (Dr. GRPO). rloo: reward minus the mean of the others. opo: reward minus
    the mean of the group's tokens. pass_at_k: what the best answer adds. max_rl: reward minus mean,
    by the mean. remax: reward minus that of a greedy answer, which is sampled for it. reinforce_pp:
    the reward, whitened over the step's tokens (REINFORCE++); reinforce_pp_baseline: reward minus
    mean, whitened. none: the reward itself, for estimators whose rewards already have signs. gae:
    against what a critic expects, token by token (PPO, see [critic]). prime: with implicit rewards
    of all tokens, see [prime]. The formulas: docs/advantages.md and docs/algorithms.md."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """gae: every token's reward is lowered by this times its KL estimate against the starting
    model, of which a copy is then kept in memory, except with ``lora.rank``."""
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    """See ``kl_coef``, and ``loss.kl_estimator``."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Move ``kl_coef`` after each step so that the mean KL of a token comes near this; None: keep
    it."""
    kl_horizon: Annotated[float, Field(gt=0)] = 10000.0
    """kl_target: sequences in which the coefficient may change by up to 20 %."""
    extra: dict[str, float] = Field(default_factory=dict)
    """Rewards beside the estimator's, each with its weight; the estimator's own has 1.
    soft_overlong: DAPO's penalty for long answers, see ``overlong_buffer``. FILE.py:FUNCTION: your
    own, from a `ttrl.types.CompletionGroup` to a number per completion."""
    extra_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """sum_then_normalize: advantages are those of the weighted sum of all rewards.
    normalize_then_sum: of each reward, then summed, and whitened over the step's tokens (GDPO)."""
    overlong_buffer: Positive | None = None
    """soft_overlong: tokens below ``rollout.max_new_tokens`` over which the penalty falls from 0 to
    -1."""
    selection: Literal["first", "random", "balanced"] = "first"
    """Which answers of a group are trained on, where there are more than
    ``policy.trained_samples``: the first ones (the paper), random ones, or as many with a positive
    advantage as without, as far as there are."""
