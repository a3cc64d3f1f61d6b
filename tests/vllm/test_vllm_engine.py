"""The vLLM engine: pushes and their traps, samples and how they end. See ``facts.py``."""

from __future__ import annotations

from typing import Any

import pytest
from facts import FILTERS, STOPS

EXACT = 1e-4
"""Nats, float32: sums in another order. A wrong model is off by a thousand times as much."""
STOP = 256
LIMIT, VOTES = 48, 8


@pytest.mark.parametrize("push", ["loaded", "pushed", "woken", "reused_buffer", "recovered"])
def test_after_a_push_engine_and_policy_agree(facts: Any, push: str) -> None:
    assert facts[push] < EXACT


def test_weights_that_were_not_pushed_are_noticed(facts: Any) -> None:
    assert "VllmEngine computes another model than LocalModel" in facts["changed"]
    assert "expected at most 0.001 for rounding in float32" in facts["changed"]


@pytest.mark.parametrize("trap", ["trap_prefix_cache", "trap_buffer", "trap_partial"])
def test_each_trap_is_one(facts: Any, trap: str) -> None:
    """vLLM says nothing, and its log-probs are those of no model; our verification sees it."""
    gap, _, refusal = str(facts[trap]).partition(": ")
    assert float(gap) > 0.03
    assert "another model" in refusal


def test_the_prefix_cache_was_the_whole_difference(facts: Any) -> None:
    assert facts["trap_prefix_cache_reset"] < EXACT


def test_a_partial_push_is_refused_and_nothing_is_sampled_from_it(facts: Any) -> None:
    missing = "weight push: 1 parameters missing: ['model.layers.1.mlp.down_proj.weight']"
    assert missing in facts["partial"]
    assert "holds no weights" in facts["after_partial"]


@pytest.mark.parametrize("state", ["unfilled", "asleep"])
def test_without_weights_nothing_is_sampled(facts: Any, state: str) -> None:
    assert "holds no weights: push some first" in facts[state]


def test_the_same_stream_gives_the_same_samples(facts: Any) -> None:
    assert facts["again"] and facts["after_giving_up"]
    first = [c[0] for c in facts["groups"][0]]
    assert facts["in_parts"] == first  # in two rounds
    assert len({tuple(t) for t in first}) > VOTES / 2
    assert facts["other_stream"][0] != first


def test_completions_end_as_with_the_other_engine(facts: Any) -> None:
    every = [c for g in facts["groups"] for c in g]
    assert len(every) == 3 * VOTES
    for tokens, logprobs, text, reason in every:
        assert len(tokens) == len(logprobs) <= LIMIT
        assert STOP not in tokens[:-1]
        assert reason == ("stop" if tokens[-1] == STOP else "length")
        assert reason == "stop" or len(tokens) == LIMIT
        assert "<|" not in text  # special tokens are left out of it
    assert {c[3] for c in every} == {"stop", "length"}
    for group, short in zip(facts["groups"], facts["short"], strict=True):
        for long, cut in zip(group, short, strict=True):
            assert cut[0] == long[0][:5]


def test_answers_are_broken_off_where_their_confidence_is_low(facts: Any) -> None:
    """Each is the beginning of the whole one, up to the first group below the threshold."""
    reasons = []
    for found, whole, until in zip(
        facts["watched"], facts["watched_whole"], facts["watched_until"], strict=True
    ):
        for (tokens, _, _, reason), (longer, *_, end), length in zip(
            found, whole, until, strict=True
        ):
            assert tokens == longer[:length]
            assert reason == ("unsure" if length < len(longer) else end)
            reasons.append(reason)
    assert reasons.count("unsure") >= 3


def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(facts: Any) -> None:
    """As far as that the samples are those without stop strings; see ``facts.py``."""
    ended = 0
    for group, whole in zip(facts["stopped"], facts["groups"], strict=True):
        for (tokens, _, text, reason), (longer, *_) in zip(group, whole, strict=True):
            assert tokens == longer[: len(tokens)]
            found = any(string in text for string in STOPS)
            assert (reason == "stop") == (found or tokens[-1] == STOP)
            assert reason == "stop" or len(tokens) == LIMIT
            ended += found
    assert ended > VOTES
    assert facts["stopped_too_late"] == []


@pytest.mark.parametrize("filters", FILTERS)
def test_logprobs_are_of_the_distribution_that_was_sampled_from(facts: Any, filters: str) -> None:
    """Those of the sampled tokens, and of the likeliest ones, where they are noted."""
    sampled, likeliest = facts[f"plain_{filters}"]
    assert sampled < EXACT
    assert likeliest < EXACT


def test_too_long_a_prompt_is_refused_as_with_the_other_engine(facts: Any) -> None:
    assert "lower rollout.max_new_tokens or data.max_prompt_tokens" in facts["too_long"]


def test_torch_and_the_environment_are_left_as_they_were(facts: Any) -> None:
    assert (facts["threads"], facts["threads_after"]) == (2, 1)  # kept, and can still be set
    assert facts["deterministic"]
    assert facts["preload"] is None


def test_once_closed_it_keeps_neither_weights_nor_cache(facts: Any) -> None:
    assert facts["let_go"]


def test_a_model_that_it_cannot_compute_is_refused(facts: Any) -> None:
    assert facts["refused"]["code"] == 2
    assert "cannot compute this model here" in facts["refused"]["said"]
    assert 'set rollout.engine = "transformers"' in facts["refused"]["said"]
    assert not facts["refused"]["begun"]


def test_the_installed_vllm_keeps_the_contract(facts: Any) -> None:
    """Every symbol that we use is there, and the check would say if one were not."""
    assert facts["contract"] == []
    lost = facts["broken_contract"]
    assert sorted(x.partition(" (")[0] for x in lost) == [
        "vllm.LLM.no_such",
        "vllm.SamplingParams: no_field",
    ]
