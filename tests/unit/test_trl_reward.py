"""The vote as a reward of TRL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl.integrations.group_reward import Answer, GroupReward
from ttrl.integrations.trl import estimator_reward, majority_reward
from ttrl.rewards import Estimator, make_estimator
from ttrl.rewards.estimators.base import estimator_names
from ttrl.settings import AnswerSettings
from ttrl.types import Estimate, UserError, VotedGroup


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


# ---------------------------------------------------------------------------------------------
# Several ranks


class Meeting:
    """Where threads that play ranks hand each other what they have."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier, self.brought = count, threading.Barrier(count, timeout=30), {}

    def gather(self, rank: int, mine: Any) -> list[Any]:
        self.brought[rank] = mine
        self.barrier.wait()
        found = [self.brought[other] for other in range(self.count)]
        self.barrier.wait()
        return found


@dataclass
class PlayedRank:
    """A thread's place, as `Ranks` is a process's."""

    rank: int
    meeting: Meeting

    def gather(self, mine: Any) -> list[Any]:
        return self.meeting.gather(self.rank, mine)


def on_ranks(reward: Any, shares: Sequence[tuple[list[str], list[str]]]) -> list[list[float]]:
    """What each rank gets for its share of prompts and completions."""
    meeting, own = Meeting(len(shares)), threading.local()

    def play(rank: int) -> list[float]:
        own.place = PlayedRank(rank, meeting)
        return reward(prompts=shares[rank][0], completions=shares[rank][1])

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(shares)) as threads:
        patch.setattr("ttrl.integrations.trl._ranks", lambda: own.place)
        return [*threads.map(play, range(len(shares)))]


@given(st.data())
def test_ranks_get_what_one_process_gets(data: st.DataObject) -> None:
    """However groups are dealt, to ranks that have nothing, too."""
    drawn = data.draw(st.lists(st.sampled_from("1122345"), min_size=1, max_size=5))
    answers = [
        answer for pair in zip(drawn, reversed(drawn), drawn, strict=True) for answer in pair
    ]
    prompts = [f"question {place // 3}" for place in range(len(answers))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answers)), min_size=1, max_size=3)))
    bounds = list(zip([0, *cuts], [*cuts, len(answers)], strict=True))
    texts = boxed(*answers)
    reward = majority_reward(3)
    shares = [(prompts[start:stop], texts[start:stop]) for start, stop in bounds]
    alone = reward(prompts=prompts, completions=texts)
    assert on_ranks(reward, shares) == [alone[start:stop] for start, stop in bounds]


def test_a_vote_is_of_the_whole_group() -> None:
    """Each rank alone would elect another answer."""
    shares = [(["a"] * 2, boxed("1", "2")), (["a"] * 2, boxed("2", "3"))]
    assert on_ranks(majority_reward(4), shares) == [[0.0, 1.0], [1.0, 0.0]]
    assert majority_reward(2)(*shares[0]) == [1.0, 0.0]


def test_a_group_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rank where it begins: a deadline could decide otherwise on another."""
    judged = []
    original = GroupReward.__call__

    def noted(self: GroupReward, group: Sequence[Answer], step: int = 0) -> list[float | None]:
        judged.append(group[0].question)
        return original(self, group, step)

    monkeypatch.setattr(GroupReward, "__call__", noted)
    shares = [
        (["a", "a"], boxed("1", "2")),
        (["a", "b"], boxed("2", "3")),
        (["b"] * 2, boxed("3", "3")),
    ]
    assert on_ranks(majority_reward(3), shares) == [[0, 1], [1, 1], [1, 1]]
    assert sorted(judged) == ["a", "b"]


# ---------------------------------------------------------------------------------------------
# Other estimators

OPTIONS = {
    "verified": {
        "verifier": f"{Path(__file__).parents[2]}/bench/verifiers/casting_out_nines.py:check"
    }
}
WHY = {"confidence": "log-probs", "scrl": "log-probs", "scope": "log-probs"}
WHY |= dict.fromkeys(("restrain", "ddrl", "ttrl_guard"), "advantages")


@pytest.mark.parametrize("name", estimator_names())
def test_each_estimator_is_had_or_refused_with_the_reason(name: str) -> None:
    if name in WHY:
        with pytest.raises(UserError, match=f"estimator = '{name}' .*{WHY[name]}"):
            estimator_reward(name, 4)
        return
    reward = estimator_reward(name, 4, options=OPTIONS.get(name))
    assert reward.__name__ == f"{name}_reward"  # type: ignore[attr-defined]
    found = reward(["1 + 1 ="] * 4, boxed("2", "2", "2", "5"))
    assert len(found) == 4 and all(isinstance(x, float) for x in found)


@pytest.mark.parametrize("name", sorted(name for name in WHY if WHY[name] == "log-probs"))
def test_those_that_say_so_do_read_log_probs(name: str) -> None:
    """And one that does not say so raises where it reads them."""
    silent = make_estimator(name)
    hidden = SimpleNamespace(estimate=silent.estimate)
    with pytest.raises(UserError, match=r"reads Completion\.(top_)?logprobs"):
        GroupReward(hidden)([Answer("q", text, (1,)) for text in boxed("1", "1", "2")])


def test_shares() -> None:
    assert estimator_reward("soft", 4)(["a"] * 4, boxed("1", "1", "1", "2")) == [
        0.75,
        0.75,
        0.75,
        0.25,
    ]


def test_a_question_left_out_earns_none() -> None:
    reward = estimator_reward("soft", 2, options={"min_entropy": 0.5})
    assert reward(["a"] * 2 + ["b"] * 2, boxed("1", "1", "1", "2")) == [None, None, 0.5, 0.5]


def test_coins_are_of_seed_step_and_question() -> None:
    def coins(seed: int, step: int, question: str) -> list[float]:
        state = SimpleNamespace(global_step=step)
        return estimator_reward("random", 32, seed=seed)(
            [question] * 32, ["?"] * 32, trainer_state=state
        )

    assert coins(0, 0, "a") == coins(0, 0, "a")
    others = [coins(1, 0, "a"), coins(0, 1, "a"), coins(0, 0, "b")]
    assert all(coins(0, 0, "a") != other for other in others) and set(others[0]) == {0.0, 1.0}


class Brief(Estimator):
    """Reads the tokens, which are handed on."""

    def estimate(self, voted: VotedGroup) -> Estimate:
        lengths = tuple(float(len(c.token_ids)) for c in voted.group.completions)
        return Estimate(vote=voted.vote, rewards_G=lengths, label=voted.label)


def test_a_user_s_own_estimator_sees_the_tokens() -> None:
    reward = estimator_reward(Brief(), 2)
    assert reward(["a"] * 2, ["x", "y"], completion_ids=[[1, 2, 3], [4]]) == [3.0, 1.0]


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ({"advantages_G": (1.0, -1.0)}, "advantages of its own"),
        ({"keep_G": (True, False)}, "a selection of answers"),
        ({"weight": 0.5}, "the question's weight 0.5"),
    ],
)
def test_what_would_be_lost_is_refused(returned: dict[str, Any], what: str) -> None:
    class Own(Estimator):
        def estimate(self, voted: VotedGroup) -> Estimate:
            return Estimate(voted.vote, (1.0, 0.0), voted.label, **returned)

    with pytest.raises(UserError, match=f"returned {what}, and a reward function returns rewards"):
        estimator_reward(Own(), 2)(["a"] * 2, boxed("1", "2"))


def test_options_of_an_object_are_refused() -> None:
    with pytest.raises(UserError, match="give it its options there"):
        estimator_reward(Brief(), 2, options={"p": 1})
