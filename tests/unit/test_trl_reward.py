"""The vote as a reward of TRL."""

from __future__ import annotations

import pytest

from ttrl.integrations.trl import majority_reward
from ttrl.settings import AnswerSettings
from ttrl.types import UserError


def boxed(*answers: str) -> list[str]:
    return [rf"so \boxed{{{answer}}}" for answer in answers]


def test_agreement_is_paid_group_by_group() -> None:
    reward = majority_reward(3)
    prompts = ["a"] * 3 + ["b"] * 3
    texts = [*boxed("1/2", "0.5", "2"), *boxed("7"), "no answer", *boxed("7.0")]
    assert reward(prompts=prompts, completions=texts, answer=["2"] * 6) == [1, 1, 0, 1, 0, 1]


def test_the_same_prompt_twice_is_two_groups() -> None:
    reward = majority_reward(2)
    assert reward(["a"] * 4, boxed("1", "1", "2", "2")) == [1.0] * 4


def test_messages() -> None:
    completions = [[{"role": "assistant", "content": text}] for text in boxed("1", "1", "3")]
    prompt = [{"role": "user", "content": "?"}]
    assert majority_reward(3)([prompt] * 3, completions) == [1.0, 1.0, 0.0]


def test_nobody_votes_nobody_earns() -> None:
    assert majority_reward(2)(["a"] * 2, ["?", "!"]) == [0.0, 0.0]


def test_other_answers_than_boxed_ones() -> None:
    reward = majority_reward(2, answers=AnswerSettings(extract="boxed_or_number"))
    assert reward(["a"] * 2, ["it is 4", "4"]) == [1.0, 1.0]


@pytest.mark.parametrize("prompts", [["a", "a", "b", "b"], ["a"] * 4])
def test_a_split_group_is_refused(prompts: list[str]) -> None:
    with pytest.raises(UserError, match="expected 3 answers to each prompt"):
        majority_reward(3)(prompts, boxed(*"1111"))


def test_one_answer_cannot_vote() -> None:
    with pytest.raises(UserError, match="expected 2 or more"):
        majority_reward(1)


def test_its_name_is_that_of_its_metric_in_trl() -> None:
    assert majority_reward(2).__name__ == "majority_reward"  # type: ignore[attr-defined]
