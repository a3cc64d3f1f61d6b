"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from groups import completion, estimate, group
from hypothesis import given
from hypothesis import strategies as st

from ttrl.answers import Grader, equivalent
from ttrl.evaluation.metrics import (
    labelled_metrics,
    maj_at_k,
    mismatch_metrics,
    pass_at_k,
    vote_metrics,
)
from ttrl.rewards import majority_vote
from ttrl.rewards.vote import same_label
from ttrl.types import AnswerKey, CompletionGroup, PastVote, UpdateResult

GRADER = Grader()

SPLIT = group("7", "8", "7.0", None, id="split")  # label "7", rewards 1 0 1 0
TIED = group("1", "2", "3", "4", id="tied")  # label "1", rewards 1 0 0 0
SILENT = group(None, None, None, None, id="silent")  # no label


def label_free(
    *groups: CompletionGroup, previous: dict[str, str | None] | None = None, trained: int = 2
) -> dict[str, float]:
    history = {}
    for g in groups:
        label, id = estimate(g).label, g.question.id
        earlier = ()
        if id in (previous or {}):
            earlier = (PastVote(1, "other", 0.9), PastVote(2, previous[id], 0.5))
        changed = bool(earlier) and not same_label(previous[id], label, GRADER)
        history[id] = (*earlier, PastVote(3, label, 0.5, changed))
    indices = [range(trained)] * len(groups)
    return vote_metrics(groups, [estimate(g) for g in groups], history, indices)


FIRST = {g.question.id: (PastVote(1, None, 0.5),) for g in (SPLIT, TIED)}
"""A history of first visits."""


def labelled(*groups: CompletionGroup, key: AnswerKey, trained: int = 2) -> dict[str, float]:
    indices = [range(trained)] * len(groups)
    return labelled_metrics(groups, [estimate(g) for g in groups], key, GRADER, indices)


# ---------------------------------------------------------------------------------------------
# Without labels


def test_the_mismatch_is_that_of_the_policy_which_is_furthest_off() -> None:
    def steps(*kls: float) -> list[UpdateResult]:
        return [
            UpdateResult(
                *(0.0, 1.0, 1e-3, 2, 1, 0, 0.1),
                means={"sampler_kl": kl, "sampler_log_ratio": -kl},
                largest={"sampler_max_gap": 2 * kl},
            )
            for kl in kls
        ]

    expected = {
        "mismatch/kl": 0.3,
        "mismatch/mean_log_ratio": -0.3,
        "mismatch/max_log_ratio": 0.6,
    }
    assert mismatch_metrics(steps(0.1, 0.9), steps(0.3), [], steps(0.2)) == expected
    assert mismatch_metrics(steps(0.3, 0.9)) == expected
    assert mismatch_metrics() == mismatch_metrics([], []) == {}


def test_figures_of_one_vote() -> None:
    assert label_free(SPLIT) == pytest.approx(
        {
            "vote/majority_ratio": 0.5,
            "vote/margin": 0.25,
            "vote/tie_share": 0,
            "vote/abstention_share": 0.25,
            "vote/undecided_share": 0,
            "vote/distinct_answers": 2,
            "vote/entropy": -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3),
            "reward/majority_reward": 0.5,
            "estimator/confidence": 0.5,
            "trained/majority_reward": 0.5,
            "rollout/response_tokens_mean": 2.5,
            "rollout/truncated_share": 0,
            "rollout/tokens": 10,
        }
    )


def test_means_over_questions() -> None:
    metrics = label_free(SPLIT, TIED, SILENT, trained=1)
    assert metrics["vote/majority_ratio"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert metrics["vote/tie_share"] == pytest.approx(1 / 3)
    assert metrics["vote/abstention_share"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert metrics["vote/distinct_answers"] == pytest.approx((2 + 4 + 0) / 3)
    assert metrics["reward/majority_reward"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert metrics["trained/majority_reward"] == pytest.approx((1 + 1 + 0) / 3)
    assert metrics["rollout/tokens"] == 30


def test_entropy_of_a_uniform_vote() -> None:
    assert label_free(TIED)["vote/entropy"] == pytest.approx(math.log(4))
    assert label_free(SILENT)["vote/entropy"] == 0


def test_flip_rate_is_over_questions_asked_before() -> None:
    previous = {"split": "7.0", "tied": "2"}
    assert label_free(SPLIT, TIED, SILENT, previous=previous)["vote/flip_rate"] == 0.5
    assert label_free(SPLIT, previous={"split": None})["vote/flip_rate"] == 1
    assert label_free(SILENT, previous={"silent": None})["vote/flip_rate"] == 0
    assert "vote/flip_rate" not in label_free(SPLIT, previous={"tied": "2"})


def test_truncated_share() -> None:
    completions = (completion("a", truncated=True), *SPLIT.completions[1:])
    truncated = replace(SPLIT, completions=completions)
    assert label_free(truncated)["rollout/truncated_share"] == 0.25


def test_estimators_own_figures_are_averaged() -> None:
    estimates = [
        replace(estimate(SPLIT), metrics={"novelty": 1.0}),
        replace(estimate(TIED), metrics={"novelty": 0.0}),
    ]
    metrics = vote_metrics([SPLIT, TIED], estimates, FIRST, [[0], [0]])
    assert metrics["estimator/novelty"] == 0.5


def test_trained_completions_are_those_that_were_selected() -> None:
    def reward(*indices: int) -> float | None:
        found = vote_metrics([SPLIT], [estimate(SPLIT)], FIRST, [indices])
        return found.get("trained/majority_reward")

    assert (reward(1), reward(0, 2, 3), reward()) == (0, pytest.approx(2 / 3), None)
    key = AnswerKey({"split": "7"})
    found = labelled_metrics([SPLIT], [estimate(SPLIT)], key, GRADER, [[0, 2, 3]])
    assert found["trained/ground_truth_reward"] == pytest.approx(2 / 3)
    assert found["trained/pass@3"] == 1


# ---------------------------------------------------------------------------------------------
# Against an answer key


def test_a_right_label() -> None:
    assert labelled(SPLIT, key=AnswerKey({"split": "007"})) == {
        "label/label_accuracy": 1,
        "label/reward_accuracy": 1,
        "label/ground_truth_reward": 0.5,
        "label/pass@4": 1,
        "trained/reward_accuracy": 1,
        "trained/ground_truth_reward": 0.5,
        "trained/pass@2": 1,
    }


def test_a_wrong_label_still_pays_most_completions_right() -> None:
    """The paper's "lucky hit": both wrong answers and abstentions earn nothing, as they should."""
    assert labelled(TIED, key=AnswerKey({"tied": "3"})) == {
        "label/label_accuracy": 0,
        "label/reward_accuracy": 0.5,  # "1" paid wrongly, "3" left out wrongly
        "label/ground_truth_reward": 0.25,
        "label/pass@4": 1,
        "trained/reward_accuracy": 0.5,
        "trained/ground_truth_reward": 0,
        "trained/pass@2": 0,
    }


def test_silence_is_wrong_about_the_label_and_right_about_the_rewards() -> None:
    metrics = labelled(SILENT, key=AnswerKey({"silent": "3"}))
    assert metrics["label/label_accuracy"] == 0
    assert metrics["label/reward_accuracy"] == 1
    assert metrics["label/pass@4"] == 0


def test_questions_without_a_reference_are_left_out() -> None:
    assert labelled(SPLIT, TIED, key=AnswerKey({"tied": "1"}))["label/label_accuracy"] == 1
    assert labelled(SPLIT, TIED, key=AnswerKey()) == {}


def test_levels() -> None:
    key = AnswerKey({"split": "7", "tied": "3", "silent": "0"}, {"split": "1", "tied": "3"})
    metrics = labelled(SPLIT, TIED, SILENT, key=key)
    assert metrics["label/label_accuracy"] == pytest.approx(1 / 3)
    assert metrics["label/label_accuracy/level=1"] == 1
    assert metrics["label/label_accuracy/level=3"] == 0
    assert metrics["trained/pass@2/level=1"] == 1
    assert {name.partition("/level=")[2] for name in metrics} == {"", "1", "3"}


# ---------------------------------------------------------------------------------------------
# pass@k and maj@k


def test_pass_at_k() -> None:
    assert pass_at_k(4, 0, 1) == 0
    assert pass_at_k(4, 4, 1) == 1
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 1, 4) == 1
    assert pass_at_k(1024, 1, 512) == 0.5
    for wrong in [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)]:
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*wrong)


def test_maj_at_k_by_hand() -> None:
    answers = ["7", "7.0", "8", None]
    assert maj_at_k(answers, "7", 4) == 1
    assert maj_at_k(answers, "8", 4) == 0
    assert maj_at_k(answers, "9", 2) == 0
    # Of the six pairs, five hold a 7, and it wins ties; only (8, None) is won by 8.
    assert maj_at_k(answers, "7", 2) == pytest.approx(5 / 6)
    assert maj_at_k(answers, "8", 2) == pytest.approx(1 / 6)
    assert maj_at_k([None, None], "7", 1) == 0
    for k in (0, 5):
        with pytest.raises(ValueError, match="maj@"):
            maj_at_k(answers, "7", k)


def wins(answers: Sequence[str | None], reference: str) -> bool:
    majority = majority_vote(answers).majority
    return majority is not None and equivalent(majority, reference)


@given(
    st.lists(st.sampled_from(["7", "7.0", "8", "10", "x", None]), min_size=1, max_size=8),
    st.sampled_from(["7", "8", "10", "x"]),
    st.data(),
)
def test_maj_at_k_is_the_share_of_all_draws(
    answers: list[str | None], reference: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    draws = [wins(draw, reference) for draw in itertools.combinations(answers, k)]
    assert maj_at_k(answers, reference, k) == pytest.approx(sum(draws) / len(draws))


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_all_draws(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = [any(draw) for draw in itertools.combinations([True] * c + [False] * (n - c), k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws))
