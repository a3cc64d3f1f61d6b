"""Two ranks under torchrun: ZeRO-3 shares of the weights, and a vLLM on each."""

from __future__ import annotations

from typing import Any

import pytest
from ranks_facts import MOST

EXACT = 1e-4
"""Nats, float32, as in one process."""


@pytest.mark.parametrize(
    "push", ["loaded", "pushed_0", "pushed_1", "pushed_2", "reused_buffer", "recovered"]
)
def test_after_every_push_all_engines_and_the_policy_agree(ranks_facts: Any, push: str) -> None:
    assert [
        f[push] for f in ranks_facts if not isinstance(f[push], float) or f[push] >= EXACT
    ] == []


@pytest.mark.parametrize("trap", ["changed", "trap_prefix_cache", "trap_buffer", "trap_partial"])
def test_each_trap_is_caught_on_every_rank(ranks_facts: Any, trap: str) -> None:
    for facts in ranks_facts:
        gap, _, refusal = str(facts[trap]).partition(": ")
        assert float(gap) > 0.01
        assert "another model than Zero3Model" in refusal


def test_the_prefix_cache_was_the_whole_difference(ranks_facts: Any) -> None:
    assert max(f["trap_prefix_cache_reset"] for f in ranks_facts) < EXACT


def test_a_push_that_lacks_one_tensor_is_refused_on_every_rank(ranks_facts: Any) -> None:
    for facts in ranks_facts:
        assert "1 parameters missing: ['model.layers.1.mlp.down_proj.weight']" in facts["partial"]
        assert "holds no weights" in facts["after_partial"]


def test_the_ranks_share_the_questions_and_know_all_answers(ranks_facts: Any) -> None:
    mine, theirs = (facts["mine"] for facts in ranks_facts)
    assert sorted([*mine, *theirs]) == sorted(f"What is {a} + "[:12] for a in (15, 48, 63))
    assert mine and theirs
    assert ranks_facts[0]["tokens"] == ranks_facts[1]["tokens"]


def test_ranks_break_off_the_same_answers(ranks_facts: Any) -> None:
    """Each rank decides by what its own engine says; if two that share one disagreed, they hang."""
    alone, each, shared = ranks_facts[0]["stopped_early"]
    assert alone == each == shared
    begun = [question["scores"]["answers"] for question in alone]
    assert 4 <= min(begun) < max(begun) == MOST
