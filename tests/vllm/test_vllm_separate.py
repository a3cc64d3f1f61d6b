"""The vLLM engine in a process of its own; see ``separate_facts.py``."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("push", ["loaded", "pushed", "woken"])
def test_after_a_push_its_logprobs_are_the_policy_s(separate: Any, push: str) -> None:
    assert separate[push] < 1e-4


def test_weights_that_were_not_pushed_to_it_are_noticed(separate: Any) -> None:
    assert "RemoteEngine computes another model than LocalModel" in separate["changed"]


@pytest.mark.parametrize("state", ["unfilled", "asleep"])
def test_it_samples_nothing_without_weights(separate: Any, state: str) -> None:
    assert separate[state].startswith("rollout engine 1 of 1: the vLLM engine holds no weights")


def test_the_same_stream_gives_the_same_samples_there(separate: Any) -> None:
    first, again = separate["again"]
    assert first == again


def test_vllm_stays_out_of_the_trainer(separate: Any) -> None:
    """It changes torch for whoever imports it."""
    assert not separate["vllm_here"]
