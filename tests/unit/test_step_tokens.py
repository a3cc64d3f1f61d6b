"""What a whole optimizer step decides: entropy mask, covariances, the entropy bonus, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_models import make_settings, train_samples

from ttrl.learner.covariance import between, covariances, highest
from ttrl.learner.entropy_coefficient import EntropyCoefficient
from ttrl.learner.entropy_mask import undecided
from ttrl.learner.objective import PreparedStep, TokenScores
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.learner.step_tokens import prepare_step
from ttrl.settings import LossSettings
from ttrl.types import TrainSample, UpdateResult

# --- entropy mask


def test_the_bound_is_a_quantile_over_all_sequences() -> None:
    entropies = [np.array([0.1, 0.9, 0.5]), np.array([0.3, 0.7])]
    # Of 0.1 0.3 0.5 0.7 0.9 the quantile 0.6 lies 0.4 of the way from 0.5 to 0.7.
    assert [x.tolist() for x in undecided(entropies, 0.4)] == [[False, True, False], [False, True]]
    assert [x.tolist() for x in undecided(entropies, 0.5)] == [[False, True, True], [False, True]]
    assert [x.tolist() for x in undecided(entropies, 0.2)] == [[False, True, False], [False] * 2]


def test_equal_entropies_are_all_kept() -> None:
    assert undecided([np.zeros(3), np.zeros(2)], 0.2)[1].tolist() == [True, True]


# --- covariances


def test_covariances_are_about_the_means_of_all_tokens() -> None:
    """Advantages 2, 2, -1 with mean 1; log-probs -1, -3, -5 with mean -3."""
    found = covariances(
        [np.array([2.0, 2.0]), np.array([-1.0])], [np.array([-1.0, -3.0]), np.array([-5.0])]
    )
    assert [x.tolist() for x in found] == [[2.0, 0.0], [4.0]]


def test_the_highest_share_is_at_least_one_and_the_first_of_equals() -> None:
    found = [np.array([0.5, 3.0, 1.0]), np.array([3.0, -9.0])]
    assert [x.tolist() for x in highest(found, 2e-4)] == [[False, True, False], [False, False]]
    assert [x.tolist() for x in highest(found, 0.4)] == [[False, True, False], [True, False]]
    assert [x.tolist() for x in highest(found, 0.79)] == [[False, True, True], [True, False]]


def test_clip_cov_chooses_at_random_within_bounds() -> None:
    found = [np.linspace(0, 10, 300), np.linspace(0, 10, 700)]
    clipped = [np.arange(300) % 2 == 0, np.zeros(700, bool)]

    def chosen(share: float, *stream: int | str) -> np.ndarray:
        return np.concatenate(between(found, clipped, (1.0, 5.0), share, stream))

    first = chosen(0.1, 7, "a")
    every, out = np.concatenate(found), np.concatenate(clipped)
    assert first.sum() == 100  # of all 1000 tokens
    assert ((every > 1) & (every < 5) & ~out)[first].all()
    assert (first == chosen(0.1, 7, "a")).all()
    assert (first != chosen(0.1, 8, "a")).any() and (first != chosen(0.1, 7, "b")).any()
    assert chosen(2e-4, 7).sum() == 1
    assert chosen(1.0, 7).sum() == ((every > 1) & (every < 5) & ~out).sum()  # there are no more


def test_clip_cov_without_a_token_in_bounds_chooses_none() -> None:
    (none,) = between([np.array([0.0, 1.0, 5.0])], [np.zeros(3, bool)], (1.0, 5.0), 0.5, (1,))
    assert not none.any()


# --- a step


def prepare(samples: list[TrainSample], against_own: bool = False, **loss: Any) -> PreparedStep:
    """With log-probs that are 0.5 nats above the sampler's, and entropies that rise."""
    scores = [
        TokenScores(
            tuple(x + 0.5 for x in s.logprobs), tuple(i + 0.1 * t for t in range(len(s.logprobs)))
        )
        for i, s in enumerate(samples)
    ]
    settings = LossSettings(**loss)
    return prepare_step(samples, scores, settings, against_own=against_own, seed=0)


def test_without_a_decision_samples_are_as_they_were() -> None:
    samples = train_samples([(2, 3), (1, 2)])
    assert prepare(samples) == PreparedStep(samples, {"corrected": 0.0, "rejected": 0.0})
    (first, _) = prepare(samples, against_own=True).samples
    assert first.old_logprobs == tuple(x + 0.5 for x in samples[0].logprobs)
    assert first.policy_factors is None and first.advantages == samples[0].advantages


def test_factors_multiply_and_advantages_stay() -> None:
    samples = train_samples([(2, 3), (1, 2)], advantage=2.0)
    step = prepare(
        samples,
        old_logprobs="policy",
        sampler_correction="truncate",
        sampler_ratio_cap=1.25,
        entropy_mask=0.5,
    )
    assert step.samples[0].policy_factors == (0.0, 0.0, 1.25)  # entropies 0, 0.1, 0.2, 1, 1.1
    assert step.samples[1].policy_factors == (1.25, 1.25)
    assert step.samples[0].advantages == (2.0, 2.0, 2.0)
    assert step.means == {"corrected": 1.0, "rejected": 0.0}


def test_kl_cov_penalizes_and_drops_nothing() -> None:
    samples = train_samples([(2, 3), (1, 2)])
    step = prepare(samples, policy="none", covariance="kl", covariance_share=0.4)
    penalties = [x for s in step.samples for x in s.ratio_penalties]
    assert sorted(penalties) == [0.0] * 3 + [1.0] * 2
    assert {x for s in step.samples for x in s.policy_factors} == {1.0}


def test_a_penalty_is_a_gradient() -> None:
    (sample,) = train_samples([(1, 2)], advantage=0.0)
    made = objective(policy="none", covariance="kl")
    assert not made.has_gradient(sample)
    assert not made.has_gradient(replace(sample, ratio_penalties=(0.0, 0.0)))
    assert made.has_gradient(replace(sample, ratio_penalties=(0.0, 1.0)))


def test_clip_cov_leaves_what_the_clip_has_alone() -> None:
    """The ratio exp(0.5) is above 1.2: with A > 0 it is clipped."""
    samples = train_samples([(2, 30), (1, 30)])
    assert samples[0].advantages[0] * samples[1].advantages[0] < 0
    wide = {"covariance": "clip", "covariance_share": 1.0, "covariance_bounds": [-100.0, 100.0]}
    factors = [s.policy_factors for s in prepare(samples, **wide).samples]
    for sample, row in zip(samples, factors, strict=True):
        assert set(row) == ({1.0} if sample.advantages[0] > 0 else {0.0})
    own = prepare(samples, old_logprobs="policy", **wide).samples
    assert {x for s in own for x in s.policy_factors} == {0.0}
    high = prepare(samples, **wide, clip_high=0.7).samples
    assert {x for s in high for x in s.policy_factors} == {0.0}


def test_all_that_are_compared_are_scored() -> None:
    """A sequence without an advantage counts in quantiles; one without a weight does not."""
    samples = train_samples([(1, 2), (1, 3), (1, 4)])
    samples[1] = TrainSample.of_answer("q", (1,), (2, 3, 4), (-1.0, -1.0, -1.0), 0.0)
    samples[2] = TrainSample.of_answer("q", (1,), (2, 3), (-1.0, -1.0), 1.0, weight=0.0)
    for loss, expected in (
        ({"entropy_mask": 0.5}, [2, 3]),
        ({"covariance": "clip"}, [2, 3]),
        ({"sampler_rejection": "token", "sampler_rejection_bound": 1.0}, [2]),
        ({}, None),
    ):
        asked: list[int] | None = None

        def score(chosen: list[TrainSample]) -> list[TokenScores]:
            nonlocal asked
            asked = [len(s.logprobs) for s in chosen]
            return [TokenScores(s.logprobs, s.logprobs) for s in chosen]

        objective(**loss).prepared([samples], score)
        assert asked == expected


# --- the entropy bonus


def objective(**loss: Any) -> PolicyObjective:
    settings = make_settings(loss=loss)
    return PolicyObjective(settings.loss, 1.0, 16, 0, lambda batch: batch.targets_T)


def result(entropy: float) -> UpdateResult:
    return UpdateResult(0.0, 0.0, 0.0, 1, 1, 0, 0.0, means={"entropy": entropy})


def test_the_bonus_rises_below_the_target_and_falls_above_it() -> None:
    made = objective(
        entropy_target=0.2, entropy_coef_step=0.1, entropy_coef_max=0.25, entropy_coef=0.1
    )
    seen = [made.entropy.value]
    for entropy in (0.1, 0.2, 0.0, 0.3, 0.1, 0.9, 0.9, 0.9, 0.15):
        made.after_step(result(entropy))
        seen.append(made.entropy.value)
    # After 0.3 it is 0.15, and acts after 0.1 again.
    assert seen == pytest.approx([0, 0.2, 0.25, 0.25, 0, 0.25, 0, 0, 0, 0.1])


def test_a_fixed_bonus_stays() -> None:
    made = EntropyCoefficient(LossSettings(entropy_coef=0.3))
    made.after_step(5.0)
    assert made.value == 0.3 and made.may_rise
    assert not EntropyCoefficient(LossSettings()).may_rise


def test_what_has_a_gradient_follows_the_bonus() -> None:
    made = objective(entropy_target=0.2)
    (sample,) = train_samples([(1, 2)], advantage=0.0)
    assert not made.has_gradient(sample)
    made.after_step(result(0.1))
    assert made.has_gradient(sample)
    made.after_step(result(0.3))
    assert not made.has_gradient(sample)


def test_the_bonus_goes_on_where_it_was() -> None:
    made, other = objective(entropy_target=0.2), objective(entropy_target=0.2)
    for _ in range(3):
        made.after_step(result(0.1))
    other.load_state(made.state())
    assert other.entropy.value == made.entropy.value == pytest.approx(0.015)
    for one in (made, other):
        one.after_step(result(0.5))
        one.after_step(result(0.1))
    assert other.state() == made.state()


def test_a_sample_that_a_later_bonus_may_reach_is_scored() -> None:
    """Else its old log-probs would be missing from a batch that has others'."""
    moved = train_samples([(1, 2)], advantage=1.0)
    still = train_samples([(1, 3)], advantage=0.0)
    made = objective(entropy_target=0.2, old_logprobs="policy")
    first, second = made.prepared(
        [moved, [*moved, *still]], lambda chosen: [TokenScores(s.logprobs, ()) for s in chosen]
    )
    assert first.samples[0].old_logprobs is None
    (_, idle) = made.prepared(
        [moved, still], lambda chosen: [TokenScores(s.logprobs, ()) for s in chosen]
    )
    assert idle.samples[0].old_logprobs == still[0].logprobs
    assert [s.old_logprobs for s in second.samples] == [s.logprobs for s in (*moved, *still)]
