"""Votes without voters, from made-up completions."""

from __future__ import annotations

from ttrl.answers import make_extractor
from ttrl.evaluation.abstentions import AbstentionGuard
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, CompletionGroup, FinishReason, Question

BOXED, BARE = r"It is \boxed{2}.", "It is 2."


def group(*texts: str, reason: FinishReason = FinishReason.STOP) -> CompletionGroup:
    completions = tuple(Completion((1,), (0.0,), text, reason) for text in texts)
    return CompletionGroup(Question("a", "1 + 1", (1,)), completions, 0)


def guard(*overrides: str) -> AbstentionGuard:
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    return AbstentionGuard(settings, make_extractor(settings.answers.extract))


def test_the_warning_says_how_many_what_was_looked_for_and_shows_one() -> None:
    warning = guard().warning(0.95, [group(BOXED), group(BOXED, BARE)])
    assert warning is not None
    assert "read from 95% of the completions: answers.extract = 'boxed' takes the last" in warning
    assert "One of them (complete): 'It is 2.'. What to change: ask for" in warning
    for setting in ("data.suffix", "data.system_prompt", "answers.extract"):
        assert setting in warning


def test_a_completion_that_was_cut_off_is_said_to_be() -> None:
    cut = group("x" * 1000 + "\n", reason=FinishReason.LENGTH)
    warning = guard("rollout.max_new_tokens=48").warning(1.0, [cut])
    assert warning is not None and "\n" not in warning and len(warning) < 900
    assert "One of them (cut off): ...'xx" in warning
    assert "cut off at rollout.max_new_tokens = 48: raise that" in warning


def test_it_is_said_once_until_the_share_is_in_order_again() -> None:
    voters = guard("guard.abstention=0.5")
    said = [voters.warning(share, []) is not None for share in (0.5, 0.6, 0.7, 0.5, 0.6)]
    assert said == [False, True, False, False, True]


def test_it_stops_after_so_many_steps_in_a_row() -> None:
    voters = guard("guard.abstaining_steps=2")
    stops = [voters.stop(share) for share in (0.95, 0.9, 0.95, 0.95)]
    assert stops[:3] == [None] * 3
    assert stops[3] is not None and stops[3].startswith("for 2 steps in a row more than 90% of")
    never = guard("guard.abstaining_steps=0")
    assert [never.stop(1.0) for _ in range(20)] == [None] * 20
