"""Advantages with a critic, by hand and against the sums that define them."""

from __future__ import annotations

import tomllib
from statistics import fmean, pvariance

import pytest
from tiny_models import make_settings

from ttrl.credit.gae import critic_metrics, gae, policy_lambda
from ttrl.credit.kl_in_reward import KlInReward
from ttrl.settings import CriticSettings, RewardSettings, Settings
from ttrl.types import TrainSample


def test_three_tokens_by_hand() -> None:
    """δ = (0 + ½·0.4 − 0.2, 0 + ½·0.6 − 0.4, 1 − 0.6) = (0, −0.1, 0.4); γλ = 0.4."""
    advantages, returns = gae((0.0, 0.0, 1.0), (0.2, 0.4, 0.6), gamma=0.5, lam=0.8)
    assert advantages == pytest.approx((0.4 * 0.06, 0.06, 0.4))
    assert returns == pytest.approx((0.224, 0.46, 1.0))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0), (0.0, 0.5)])
def test_it_is_the_discounted_sum_of_temporal_differences(gamma: float, lam: float) -> None:
    rewards, values = (0.3, -0.1, 0.0, 2.0, 1.0), (0.5, 0.1, -0.4, 0.8, 0.2)
    advantages, returns = gae(rewards, values, gamma, lam)
    after = (*values[1:], 0.0)
    deltas = [r + gamma * w - v for r, v, w in zip(rewards, values, after, strict=True)]
    for t in range(5):
        expected = sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, 5))
        assert advantages[t] == pytest.approx(expected)
        assert returns[t] == pytest.approx(expected + values[t])


def test_without_discount_the_return_is_the_outcome() -> None:
    """γ = λ = 1: A_t = r − V_t, the chance of agreement is what a critic learns."""
    advantages, returns = gae((0.0, 0.0, 1.0), (0.25, 0.5, 0.75), 1.0, 1.0)
    assert advantages == (0.75, 0.5, 0.25)
    assert returns == (1.0, 1.0, 1.0)


def test_lambda_grows_with_the_length() -> None:
    fixed, adaptive = CriticSettings(gae_lambda=0.9), CriticSettings(length_adaptive=0.05)
    assert policy_lambda(7, fixed) == 0.9
    assert policy_lambda(100, adaptive) == pytest.approx(0.8)
    assert policy_lambda(2000, adaptive) == pytest.approx(0.99)
    assert policy_lambda(10, adaptive) == 0.0  # the formula's is negative


def sample(returns: tuple[float, ...], values: tuple[float, ...]) -> TrainSample:
    n = len(returns)
    made = TrainSample.of_answer("q", (1,), (2,) * n, (-1.0,) * n, 0.0)
    return TrainSample(
        **{f: getattr(made, f) for f in ("question_id", "token_ids", "trained", "logprobs")},
        advantages=made.advantages,
        returns=returns,
        values=values,
    )


def test_the_explained_variance_is_over_all_tokens() -> None:
    known = [sample((1.0, 1.0), (0.9, 0.8)), sample((0.0,), (0.3,))]
    errors = (0.1, 0.2, -0.3)
    found = critic_metrics(known)
    assert found["critic/return_mean"] == pytest.approx(2 / 3)
    assert found["critic/value_mean"] == pytest.approx(2 / 3)
    assert found["critic/explained_variance"] == pytest.approx(1 - pvariance(errors) / (2 / 9))
    assert "critic/explained_variance" not in critic_metrics([sample((1.0, 1.0), (0.0, 0.5))])


class Fixed:
    """A policy whose log-probs, and those of its start, are known."""

    def logprobs(self, samples: list[TrainSample]) -> list[tuple[float, ...]]:
        return [(-1.0,) * len(s.logprobs) for s in samples]

    def per_token(
        self, samples: list[TrainSample], figures: object
    ) -> list[list[tuple[float, ...]]]:
        return [[tuple(-1.0 - 0.1 * i for i in range(len(s.logprobs)))] for s in samples]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", (0.0, 0.1, 0.2)),
        ("abs", (0.0, 0.1, 0.2)),
        ("k2", (0.0, 0.005, 0.02)),
        ("k3", (0.0, 0.00483742, 0.01873075)),
    ],
)
def test_every_token_pays_for_its_distance_from_the_start(
    kind: str, expected: tuple[float, ...]
) -> None:
    reward = RewardSettings(advantages="gae", kl_coef=0.5, kl_estimator=kind)
    kl = KlInReward(reward, Fixed())
    samples = [sample((0.0,) * 3, (0.0,) * 3), sample((0.0,), (0.0,))]
    penalties = kl.penalties(samples)
    assert penalties[0] == pytest.approx([0.5 * x for x in expected], abs=1e-8)
    assert penalties[1] == (0.0,)
    found = kl.adapt(penalties)
    assert found["reward/kl"] == pytest.approx((fmean(expected) + 0) / 2, abs=1e-8)
    assert found["reward/kl_coef"] == kl.coef == 0.5  # no target: it stays


@pytest.mark.parametrize(
    ("target", "horizon", "factor"),
    [
        (0.05, 20.0, 1 + 0.0 * 2 / 20),  # the mean of the means is 0.05
        (0.04, 20.0, 1 + 0.2 * 2 / 20),  # a quarter too high: by 20 % at most
        (0.1, 20.0, 1 - 0.2 * 2 / 20),
        (0.048, 20.0, 1 + (0.05 / 0.048 - 1) * 2 / 20),
        (0.04, 1.0, 1.2),  # fewer samples than one step's
    ],
)
def test_the_coefficient_goes_where_the_target_is(
    target: float, horizon: float, factor: float
) -> None:
    reward = RewardSettings(advantages="gae", kl_coef=0.5, kl_target=target, kl_horizon=horizon)
    kl = KlInReward(reward, Fixed())
    kl.adapt(kl.penalties([sample((0.0,) * 3, (0.0,) * 3), sample((0.0,), (0.0,))]))
    assert kl.coef == pytest.approx(0.5 * factor)


def test_without_a_coefficient_nobody_is_asked() -> None:
    kl = KlInReward(RewardSettings(), policy=None)
    assert kl.penalties([sample((0.0,) * 2, (0.0,) * 2)]) == [(0.0, 0.0)]
    assert kl.adapt([(0.0, 0.0)]) == {}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"critic": {"learning_rate": 1e-4}}, r'\[critic\] needs reward.advantages = "gae"'),
        ({"prime": {"beta": 0.1}}, r'\[prime\] needs reward.advantages = "prime"'),
        ({"reward": {"kl_coef": 0.1}}, r"reward.kl_coef = 0.1 needs reward.advantages"),
        (
            {"reward": {"advantages": "gae", "kl_target": 0.1}},
            r"reward.kl_target = 0.1 needs reward.kl_coef above 0",
        ),
        (
            {"reward": {"advantages": "gae", "kl_coef": 0.1, "kl_horizon": 5.0}},
            r"reward.kl_horizon = 5.0 needs reward.kl_target",
        ),
        (
            {"reward": {"advantages": "prime"}, "policy": {"trained_samples": 1}},
            r"set policy.trained_samples to 2 or more",
        ),
    ],
)
def test_settings_without_effect_are_refused(sections: dict[str, dict], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_settings(**sections)


def test_an_algorithm_is_a_word_for_its_parts() -> None:
    def advantages(*words: str, **reward: str) -> str:
        tables = make_settings().model_dump(exclude={"algorithm", "reward"})
        tables |= dict(zip(("algorithm",), words, strict=False)) | {"reward": reward}
        settings = Settings.model_validate(tables)
        assert Settings.model_validate(tomllib.loads(settings.to_toml())) == settings
        return settings.reward.advantages

    assert advantages() == advantages("grpo") == "mean_std"
    assert advantages("ppo") == advantages(advantages="gae") == "gae"
    assert advantages("prime") == advantages("prime", advantages="prime") == "prime"
    assert advantages("grpo", advantages="rloo") == "rloo"  # a part that is set by itself
    for word, part in (("ppo", "rloo"), ("ppo", "prime"), ("grpo", "gae"), ("prime", "mean")):
        with pytest.raises(ValueError, match=f'algorithm = "{word}" contradicts reward.advantages'):
            advantages(word, advantages=part)
    made = make_settings().model_copy(update={"reward": RewardSettings(estimator="soft")})
    tables = {name: getattr(made, name) for name in ("name", "model", "data", "rollout", "policy")}
    tables |= {"memory": made.memory, "reward": made.reward, "algorithm": "ppo"}
    assert Settings(**tables).reward == RewardSettings(estimator="soft", advantages="gae")
    with pytest.raises(ValueError, match="algorithm"):
        Settings(**tables | {"algorithm": ["ppo"]})
