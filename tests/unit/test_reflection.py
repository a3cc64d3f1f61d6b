"""SR-TTRL: what is in the pool, what the policy picks, and what is no pick."""

from __future__ import annotations

from dataclasses import replace

import pytest
from asked_policy import Scripted, answers
from groups import boxed, group, voted

from ttrl.answers import default_grader, extract_answer
from ttrl.rewards.reflection import COMPARE, PICK, SelfReflection
from ttrl.settings.recipe import load_settings
from ttrl.types import CompletionGroup, Vote


def source(*overrides: str) -> SelfReflection:
    changes = ["reward.labels=reflection", "data.max_prompt_tokens=4096", *overrides]
    settings = load_settings(
        "tiny-arithmetic", overrides=["memory.tokens_per_batch=8192", *changes]
    )
    return SelfReflection(settings, extract_answer, default_grader())


PLAIN = "reflection.summary_tokens=0"


def asked(*given: str | None, id: str = "q1", **more: object) -> tuple[CompletionGroup, Vote]:
    of = group(*given, id=id, **more)  # type: ignore[arg-type]
    of = replace(of, question=replace(of.question, text=f"Text of {id}"))
    return of, voted(of).vote


def test_the_pick_is_the_label_whatever_its_spelling_and_its_votes() -> None:
    policy = Scripted(reflection=lambda message: answers("0.5"))
    labels = source(PLAIN).labels_from([asked("7", "7", "7", "1/2", None)], 1, policy)
    assert labels == {"q1": "1/2"}
    ((name, id, message, n, tokens, as_answer),) = policy.asked
    assert (name, id, n, tokens, as_answer) == ("reflection", "q1", 1, 1024, True)
    assert message.startswith(f"Text of q1{COMPARE}Solution 1:\n")
    assert message.endswith(PICK)
    assert message.count("Solution") == 2  # one for each answer
    assert f"{boxed('1/2')}\nIts answer: 1/2\n" in message
    assert f"{boxed('7')}\nIts answer: 7\n" in message


@pytest.mark.parametrize("reply", [answers("8"), answers(None), [""], None])
def test_any_other_reply_is_no_label(reply: list[str] | None) -> None:
    policy = Scripted(reflection=lambda message: reply)
    assert source(PLAIN).labels_from([asked("7", "7", "6")], 1, policy) == {"q1": None}


def test_where_all_agree_nothing_is_asked() -> None:
    policy = Scripted()
    voters = [asked("7", "7.0", None), asked(None, None, id="q2")]
    assert source().labels_from(voters, 1, policy) == {"q1": "7", "q2": None}
    assert policy.asked == []


def test_the_surest_solution_of_the_most_frequent_answers_stands_for_them() -> None:
    policy = Scripted(reflection=lambda message: answers("7"))
    of, vote = asked("7", "8", "7", "9", "8", "7", surprisals=(0.5, 0.4, 0.2, 0.1, 0.6, 0.3))
    texts = [f"{i}: {c.text}" for i, c in enumerate(of.completions)]
    named = tuple(replace(c, text=t) for c, t in zip(of.completions, texts, strict=True))
    of = replace(of, completions=named)
    source(PLAIN, "reflection.candidates=2").labels_from([(of, vote)], 1, policy)
    message = policy.asked[0][2]
    shown = [text for text in texts if text in message]
    assert shown == [
        texts[1],
        texts[2],
    ]  # 0.4 of 0.4 and 0.6; 0.2 of 0.5, 0.2 and 0.3; 9 is the third


def test_the_order_of_the_pool_is_random_and_repeated() -> None:
    def orders() -> list[bool]:
        policy = Scripted(reflection=lambda message: answers("7"))
        for step in range(1, 65):
            source(PLAIN).labels_from([asked("7", "7", "6")], step, policy)
        return [m.index("answer: 7") < m.index("answer: 6") for _, _, m, *_ in policy.asked]

    first = orders()
    assert 16 < sum(first) < 48  # 32 expected, 4 standard deviations
    assert first == orders()


def test_solutions_are_summed_up_first() -> None:
    policy = Scripted(
        summary=lambda message: ["Sevens." if "{7}" in message else ""],
        reflection=lambda message: answers("6"),
    )
    labels = source("reflection.summary_tokens=9").labels_from(
        [asked("7", "7", "6"), asked("5", "5", id="q2")], 1, policy
    )
    assert labels == {"q1": "6", "q2": "5"}
    assert [(name, id, tokens) for name, id, _, _, tokens, _ in policy.asked] == [
        ("summary", "q1", 9),
        ("summary", "q1", 9),
        ("reflection", "q1", 1024),
    ]
    message = policy.asked[-1][2]
    assert "Sevens.\nIts answer: 7" in message
    assert f"{boxed('6')}\nIts answer: 6" in message  # whose summary was empty
