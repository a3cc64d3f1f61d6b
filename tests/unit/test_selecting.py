"""What rules are given: replies of the policy drawn as its answers, and tokens that are noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from ttrl.report.rollouts import RecordedAnswer
from ttrl.rewards.estimators.readings import surprisal
from ttrl.rollout.engines.vllm_engine import MOST_NOTED
from ttrl.selection import reflecting
from ttrl.selection.reflecting import Reflecting
from ttrl.selection.rules import make_rules
from ttrl.selection.selecting import Selecting
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import FinishReason, UserError


@dataclass
class Sampling:
    """As much of an evaluation as says what is noted."""

    settings: Settings
    noted: int = 0


def test_the_policy_replies_as_it_has_answered() -> None:
    """By the temperature of the evaluation; and it is shown how sure it was of an answer."""
    own = ["evaluation.temperature=0.7", "evaluation.top_p=0.9", "rollout.top_k=5"]
    settings = load_settings("tiny-arithmetic", overrides=own)
    nothing = cast(Any, None)
    drawn = Reflecting(settings, nothing, nothing, nothing, nothing)._sampling().rollout
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (0.7, 0.9, 0, 0.0)
    read = reflecting.completion(RecordedAnswer("7", 3, True, surprisal=0.25))
    assert (surprisal(read), read.text) == (0.25, "7")
    assert read.finish_reason is FinishReason.LENGTH


def test_vllm_notes_only_so_many_tokens() -> None:
    own = ["rollout.engine=vllm", "evaluation.top_p=1.0"]
    for asked in (MOST_NOTED, MOST_NOTED + 1):
        more = [*own, f"selection.top_logprobs={asked}"]
        settings = load_settings("tiny-arithmetic", overrides=more)
        evaluation = cast(Any, Sampling(settings))
        selecting = Selecting(make_rules("borda"))
        if asked == MOST_NOTED:
            assert selecting.noting(evaluation).noted == asked
        else:
            with pytest.raises(UserError, match=rf"top_logprobs = {asked}: expected at most"):
                selecting.noting(evaluation)
