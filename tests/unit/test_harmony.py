"""Self-Harmony: labels worked out by hand, and what is no paraphrase."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from asked_policy import Scripted, answers
from groups import completion, group, voted

from ttrl.answers import default_grader, extract_answer
from ttrl.rewards.harmony import PARAPHRASE, SelfHarmony, harmonic_label
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, CompletionGroup, UserError, Vote


def label(original: str, paraphrased: str) -> str | None:
    """Of answers of one character; a dot abstains."""
    first, second = ([None if a == "." else a for a in text] for text in (original, paraphrased))
    return harmonic_label(first, second, default_grader())


def test_the_harmonic_mean_of_both_shares_elects() -> None:
    # p0, p1 and 2 p0 p1 / (p0 + p1): of 1: 5/8, 1/8, 0.208; of 2: 3/8, 3/8, 0.375; of 3: 0, 4/8, 0.
    assert label("11111222", "13333222") == "2"
    # The majority of both together is 1, with 6 of 16; the arithmetic mean would elect it.
    # 1: 4/8, 1/8: 0.2. 2: 2/8, 3/8: 0.3.
    assert label("11112235", "12223445") == "2"


def test_abstentions_count_in_the_shares() -> None:
    # 1: 3/4, 1/8: 0.214. 2: 1/4, 2/8: 0.25. Without abstentions 1 would have 3/4, 1/3: 0.462.
    assert label("1112", "122.....") == "2"
    assert label("1112", "122") == "1"


def test_of_equal_ones_the_question_decides() -> None:
    assert label("2221", "1112") == "2"  # 3/4 and 1/4 both, and the other way round
    assert label("2211", "1122") == "1"  # the first of the vote


def test_no_answer_to_both_is_no_label() -> None:
    assert label("1111", "2222") is None
    assert label("1111", "....") is None
    assert label("....", "1111") is None
    assert label("1111", "") is None


def test_the_spelling_is_that_of_a_voter() -> None:
    found = harmonic_label(["1/2", "0.5", "1/2"], ["0.50", r"\frac12"], default_grader())
    assert found == "1/2"


def source(*overrides: str) -> SelfHarmony:
    settings = load_settings("tiny-arithmetic", overrides=["reward.labels=harmony", *overrides])
    return SelfHarmony(settings, extract_answer, default_grader())


def asked(*given: str | None, id: str = "q1") -> tuple[CompletionGroup, Vote]:
    of = group(*given, id=id)
    of = replace(of, question=replace(of.question, text=f"Text of {id}"))
    return of, voted(of).vote


def test_the_policy_is_asked_for_a_paraphrase_and_then_to_answer_it() -> None:
    policy = Scripted(
        paraphrase=lambda message: [f"<think>hm</think> Again: {message[-2:]} "],
        paraphrased=lambda message: answers("2", "2") if "q1" in message else answers("4", None),
    )
    labels = source("harmony.votes=2").labels_from(
        [asked("1", "1", "2"), asked("3", "4", "4", id="q2")], 1, policy
    )
    assert labels == {"q1": "2", "q2": "4"}
    first, second = policy.asked[:2], policy.asked[2:]
    assert first[0] == ("paraphrase", "q1", f"{PARAPHRASE}Text of q1", 1, 512, False)
    assert second[1] == ("paraphrased", "q2", "Again: q2", 2, 80, True)


@pytest.mark.parametrize("reply", [[""], ["<think>only</think>  "], None])
def test_without_a_paraphrase_there_is_no_label(reply: list[str] | None) -> None:
    policy = Scripted(paraphrase=lambda message: reply)
    assert source().labels_from([asked("1", "1")], 1, policy) == {"q1": None}
    assert [name for name, *_ in policy.asked] == ["paraphrase"]


def test_a_paraphrase_that_was_cut_off_is_none() -> None:
    class Long(Scripted):
        def __call__(
            self, name: str, *rest: object, **more: object
        ) -> list[tuple[Completion, ...]]:
            return [(completion("Again", truncated=True),)] if name == "paraphrase" else []

    assert source().labels_from([asked("1", "1")], 1, Long()) == {"q1": None}


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def louder(text):\n    return text.upper()\ndef wrong(text):\n    return 3\n"
        "def broken(text):\n    raise KeyError('no')\n"
    )
    own = f"harmony.paraphrase={tmp_path / 'own.py'}:"
    policy = Scripted(paraphrased=lambda message: answers("1") if message == "TEXT OF Q1" else [])
    assert source(f"{own}louder").labels_from([asked("1", "2")], 1, policy) == {"q1": "1"}
    assert policy.asked[0][3] == 64  # as many as rollout.votes
    for name, words in (("wrong", "returned 3: expected a str"), ("broken", "KeyError: 'no'")):
        with pytest.raises(UserError, match=words):
            source(own + name).labels_from([asked("1")], 1, policy)
    with pytest.raises(UserError, match="'nobody': expected policy, or FILE"):
        source("harmony.paraphrase=nobody")


def test_a_conversation_has_no_text() -> None:
    of, vote = asked("1")
    of = replace(of, question=replace(of.question, text=None))
    with pytest.raises(UserError, match="'q1' cannot be put in another prompt"):
        source().labels_from([(of, vote)], 1, Scripted())
