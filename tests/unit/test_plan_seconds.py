"""What the plan counts among the seconds of a step."""

from __future__ import annotations

import pytest
from plans import plan_of


def test_what_a_label_source_asks_takes_time() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    votes = plan_of(recipe).seconds
    assert votes["free pass"] == 0
    own = ("reward.labels=harmony", "harmony.paraphrase=a.py:b")
    twice = plan_of(recipe, *own).seconds
    assert twice["free pass"] == twice["rollout"] == votes["rollout"]
    asked = plan_of(recipe, "reward.labels=harmony").seconds["free pass"]
    assert 0 < asked - twice["free pass"] < 0.2 * votes["rollout"]  # one short paraphrase
    read = plan_of(recipe, "reward.labels=reflection").seconds["free pass"]
    plain = plan_of(recipe, "reward.labels=reflection", "reflection.summary_tokens=0").seconds
    assert 0 < plain["free pass"] < read < votes["rollout"]


def test_remax_samples_one_answer_more() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    votes, more = (
        plan_of(recipe, *x).seconds["rollout"] for x in ((), ("reward.advantages=remax",))
    )
    # One answer to each of 8 questions, on 8 GPUs: as many tokens after each other as the votes
    # take, each as long as reading the weights and the keys of one answer.
    assert 0.5 * votes < more - votes < votes


def test_scoring_takes_its_share_of_a_forward_pass() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    of = ("policy.trained_samples=16", "policy.sequences_per_update=32")  # 8 questions: 4 updates

    def scoring(*changes: str) -> float:
        return plan_of(recipe, *of, *changes).seconds["scoring"]

    assert scoring() == 0
    own = scoring("loss.old_logprobs=policy")
    all_of_them = scoring("loss.entropy_mask=0.2")
    assert own == pytest.approx(0.75 * all_of_them)
    assert scoring("loss.old_logprobs=policy", "policy.epochs_per_rollout=2") == all_of_them
    corrected = ("loss.old_logprobs=policy", "loss.sampler_correction=truncate")
    assert scoring(*corrected) == all_of_them
    # Forward, of forward, backward and what is recomputed.
    update = plan_of(recipe, *of).seconds["update"]
    assert 0.2 * update < all_of_them < 0.4 * update
