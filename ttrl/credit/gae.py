"""Generalized advantage estimation with a critic: PPO (arXiv 1707.06347, 1506.02438)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ttrl.credit.credit import Assigned
from ttrl.credit.kl_in_reward import KlInReward
from ttrl.credit.outcomes import outcomes
from ttrl.credit.whitening import whitened_by_part
from ttrl.learner.trained_model import TrainedModel
from ttrl.learner.value_objective import ValueObjective
from ttrl.settings import CriticSettings, Settings
from ttrl.types import CompletionGroup, Estimate, TrainSample


def gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the advantages and the returns of the tokens of one answer.

        δ_t = r_t + γ V_{t+1} − V_t      A_t = δ_t + γ λ A_{t+1}      R_t = A_t + V_t

    with V = A = 0 behind the last token.

    Args:
        rewards: per token.
        values: per token, what was expected before it.
        gamma: discount per token.
        lam: λ.
    """
    advantages: list[float] = []
    following, advantage = 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        following = value
        advantages.append(advantage)
    advantages.reverse()
    returns = tuple(a + v for a, v in zip(advantages, values, strict=True))
    return tuple(advantages), returns


def policy_lambda(tokens: int, critic: CriticSettings) -> float:
    """Return the λ of the advantages of an answer of so many tokens.

    ``critic.gae_lambda``, or 1 − 1/(α·tokens), but not below 0 (VAPO, arXiv 2504.05118). Returns,
    which the critic learns, always have ``critic.gae_lambda``.
    """
    if critic.length_adaptive is None:
        return critic.gae_lambda
    return max(0.0, 1 - 1 / (critic.length_adaptive * tokens))


class Gae:
    """Compares each token's return with what a critic expected, and trains the critic."""

    def __init__(self, settings: Settings, policy: TrainedModel, critic: TrainedModel) -> None:
        """Read [critic] and [reward]; ``critic`` has a value head."""
        self.settings, self.critic = settings, critic
        self.models = {"critic": critic}
        self.kl = KlInReward(settings.reward, policy)
        self.objective = ValueObjective(settings.critic.value_clip)

    def assign(
        self, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate], step: int
    ) -> Assigned:
        """Compute advantages, whitened over the tokens of a turn; then train the critic on returns.

        The reward of an answer is earned by its last token. In the first ``critic.warmup_steps``
        steps the policy gets no samples.
        """
        found, settings = outcomes(groups, estimates, self.settings, step), self.settings.critic
        if not found.samples:
            return Assigned([], found.chosen)
        penalties = self.kl.penalties(found.samples)
        expected: list[TrainSample] = []
        advantages: list[tuple[float, ...]] = []
        with self.critic.reloaded():
            values = self.values(found.samples)
            for i, sample in enumerate(found.samples):
                rewards = [-penalty for penalty in penalties[i]]
                rewards[-1] += found.rewards[i]
                advantage, returns = gae(rewards, values[i], settings.gamma, settings.gae_lambda)
                if (lam := policy_lambda(len(rewards), settings)) != settings.gae_lambda:
                    advantage, _ = gae(rewards, values[i], settings.gamma, lam)
                advantages.append(advantage)
                expected.append(replace(sample, returns=returns, values=values[i]))
            updates = self.critic.update(expected, self.objective, settings.learning_rate)
        samples = whitened_by_part(found.samples, advantages, found.parts)
        learning = step > settings.warmup_steps
        return Assigned(
            samples if learning else [],
            found.chosen if learning else [[] for _ in found.chosen],
            metrics=critic_metrics(expected) | self.kl.adapt(penalties),
            updates={"critic": updates},
        )

    def values(self, samples: Sequence[TrainSample]) -> list[tuple[float, ...]]:
        """Compute what the critic expects before each trained token of the samples."""
        found = self.critic.per_token(samples, lambda batch: (self.critic.network(batch),))
        return [values for (values,) in found]

    def state(self) -> dict[str, float]:
        """Return the coefficient of the KL term, as JSON."""
        return {"kl_coef": self.kl.coef}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        self.kl.coef = float(state["kl_coef"])


def critic_metrics(samples: Sequence[TrainSample]) -> dict[str, float]:
    """Say how well the critic knew the returns: explained variance is 1 − Var(R − V) / Var(R)."""
    returns = np.array([x for s in samples for x in s.returns or ()])
    values = np.array([x for s in samples for x in s.values or ()])
    metrics = {
        "critic/return_mean": float(returns.mean()),
        "critic/value_mean": float(values.mean()),
    }
    if len(set(returns.tolist())) > 1:
        share = (returns - values).var() / returns.var()
        metrics["critic/explained_variance"] = 1 - float(share)
    return metrics
