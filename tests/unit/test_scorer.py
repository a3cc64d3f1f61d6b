"""From completions to estimates: labels, history, threads, and when a vote is decided."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from groups import boxed, completion, group

from ttrl.answers import Grader
from ttrl.rewards.scorer import GRADING_THREADS, GroupScorer, in_background
from ttrl.settings.recipe import load_settings
from ttrl.types import CompletionGroup, Estimate, PastVote, UserError


def judge(*overrides: str) -> GroupScorer:
    settings = load_settings("tiny-arithmetic", overrides=list(overrides))
    return GroupScorer(settings, Grader(settings.answers))


def test_the_voters_elect_the_label() -> None:
    estimate = judge().estimate(group("1/2", "3", "0.5", None), None, 1)
    assert estimate.label == "0.5"  # as often as 1/2, and earlier by tie_order
    assert estimate.rewards_G == (1.0, 0.0, 1.0, 0.0)


def test_a_label_from_elsewhere_is_what_counts() -> None:
    estimate = judge().estimate(group("1/2", "3", "0.5", None), {"q1": "3.0"}, 1)
    assert estimate.label == "3.0"
    assert estimate.rewards_G == (0.0, 1.0, 0.0, 0.0)
    assert estimate.vote.majority == "0.5"


@pytest.mark.parametrize(
    ("greedy", "labels", "expected"),
    [
        ("0.5", None, 1.0),  # as the majority
        ("3", None, 0.0),
        (None, None, 0.0),
        ("3", {"q1": "3.0"}, 1.0),
        ("1/2", {"q1": None}, 0.0),
    ],
)
def test_a_greedy_answer_is_judged_and_does_not_vote(
    greedy: str | None, labels: Any, expected: float
) -> None:
    voted = group("1/2", "3", "1/2", None)
    estimate = judge().estimate(replace(voted, greedy=completion(boxed(greedy))), labels, 1)
    assert estimate.greedy_reward == expected
    without = judge().estimate(voted, labels, 1)
    assert without == replace(estimate, greedy_reward=None)


def test_remax_needs_rewards_that_a_greedy_answer_can_have() -> None:
    with pytest.raises(
        UserError, match=r'"remax" needs reward\.estimator = "majority", got \'soft'
    ):
        judge("reward.advantages=remax", "reward.estimator=soft")
    judge("reward.advantages=remax")


@pytest.mark.parametrize("labels", [{"q1": None}, {}, {"q1": "7"}])
def test_nobody_agrees_with_no_label_or_an_answer_that_nobody_gave(labels: Any) -> None:
    assert judge().estimate(group("1", "1", None), labels, 1).rewards_G == (0.0, 0.0, 0.0)


def test_everybody_abstains() -> None:
    for labels in (None, {"q1": "7"}, {"q1": None}):
        assert judge().estimate(group(None, None), labels, 1).rewards_G == (0.0, 0.0)


def test_history_is_what_was_remembered(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "class Spy:\n"
        "    seen = []\n"
        "    def estimate(self, voted):\n"
        "        from ttrl.types import Estimate\n"
        "        self.seen.append((voted.history, voted.stream))\n"
        "        return Estimate(voted.vote, (0.0,) * len(voted.agrees_G), voted.label)\n"
    )
    spy = judge(f"reward.estimator={tmp_path / 'mine.py'}:Spy", "seed=3")
    for step, answers in enumerate((("1", "1", "2"), ("2", "2")), start=1):
        groups = [group(*answers)]
        spy.remember(step, groups, [spy.estimate(g, None, step) for g in groups])
    spy.estimate(group("5"), None, 9)
    first, second = PastVote(1, "1", 2 / 3), PastVote(2, "2", 1.0, changed=True)
    assert spy.estimator.seen == [  # type: ignore[attr-defined]
        ((), (3, "reward", 1, "q1")),
        ((first,), (3, "reward", 2, "q1")),
        ((first, second), (3, "reward", 9, "q1")),
    ]


def test_a_label_has_changed_unless_it_is_an_equivalent_one() -> None:
    scorer, changes = judge(), []
    for step, answers in enumerate((("1", "1"), ("1.0", "2/2"), ("2", "2"), (None,) * 2), start=1):
        groups = [group(*answers)]
        scorer.remember(step, groups, [scorer.estimate(g, None, step) for g in groups])
        changes.append(scorer.history["q1"][-1].changed)
    assert changes == [False, False, True, True]
    again = judge()
    again.load_state(json.loads(json.dumps(scorer.state())))
    assert again.history == scorer.history


def test_the_settings_name_the_extractor(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text("def first_word(text):\n    return text.split()[0]\n")
    own = judge(f"answers.extract={tmp_path / 'mine.py'}:first_word")
    assert own.vote(group("1", "2")).answers_G == ("So", "So")
    with pytest.raises(UserError, match=r"answers\.extract = 'boxd'"):
        judge("answers.extract=boxd")


@pytest.mark.parametrize(
    ("answers", "remaining", "decided"),
    [
        ("1112", 1, True),  # 3 : 1 with one to come
        ("1112", 2, False),  # 3 : 3 would be a tie
        ("1111", 3, True),
        ("1111", 4, False),
        ("12", 0, False),  # a tie has no lead
        ("", 1, False),
    ],
)
def test_a_vote_is_decided_when_the_rest_cannot_even_tie(
    answers: str, remaining: int, decided: bool
) -> None:
    completions = [completion(boxed(answer)) for answer in answers]
    assert judge().decided(completions, remaining) is decided


def test_abstentions_are_no_lead() -> None:
    completions = [completion(boxed(answer)) for answer in ("1", None, None, None)]
    assert not judge().decided(completions, 1)
    assert judge().decided(completions, 0)


def test_what_an_extractor_raises_early_is_raised_when_all_is_sampled(tmp_path: Any) -> None:
    """Even if it would not raise again."""
    (tmp_path / "mine.py").write_text(
        "calls = []\n"
        "def once(text):\n"
        "    calls.append(text)\n"
        "    if len(calls) == 1:\n"
        "        raise ValueError('broken')\n"
        "    return '1'\n"
    )
    own = judge(f"answers.extract={tmp_path / 'mine.py'}:once")
    assert own.decided([completion("1")] * 3, 1) is False
    assert own.decided([completion("1")] * 3, 1) is True
    with pytest.raises(UserError, match="failed with ValueError: broken"):
        own.estimate(group("1"), None, 1)


def test_judging_goes_on_beside_sampling() -> None:
    released = threading.Event()
    threads = set()

    def slow(of: CompletionGroup) -> Estimate:
        assert released.wait(10), "handing a group over waited for its judgement"
        threads.add(threading.current_thread())
        return judge().estimate(of, None, 1)

    with in_background(slow) as (submit, judged):
        submit(group("1", id="a"))
        submit(group("2", id="b"))
        released.set()
        assert {id: future.result().label for id, future in judged.items()} == {"a": "1", "b": "2"}
    assert threading.main_thread() not in threads


def test_an_error_while_judging_is_not_lost() -> None:
    def broken(of: CompletionGroup) -> Estimate:
        raise UserError("the estimator is broken")

    with in_background(broken) as (submit, judged):
        submit(group("1", id="a"))
        with pytest.raises(UserError, match="the estimator is broken"):
            judged["a"].result()


def test_an_interrupt_waits_for_nobody() -> None:
    go = threading.Event()

    def slow(of: CompletionGroup) -> Estimate:
        assert go.wait(60)
        raise UserError("judged")

    with pytest.raises(KeyboardInterrupt), in_background(slow) as (submit, judged):
        for i in range(20):
            submit(group("1", id=str(i)))
        raise KeyboardInterrupt
    waiting = [future for future in judged.values() if not future.cancelled()]
    go.set()
    assert len(waiting) <= GRADING_THREADS
    assert all(isinstance(future.exception(), UserError) for future in waiting)


@pytest.mark.parametrize("name", ["restrain", "ddrl", "ttrl_guard"])
@pytest.mark.parametrize("advantages", ["gae", "prime"])
def test_own_advantages_leave_nothing_to_a_second_model(name: str, advantages: str) -> None:
    with pytest.raises(UserError, match=f"'{advantages}' would be ignored: .* says itself"):
        judge(f"reward.estimator={name}", f"reward.advantages={advantages}")


def refuse_estimate(tmp_path: Any, arguments: str, words: str) -> None:
    """An estimator that returns ``Estimate(arguments)`` is refused in these words."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from ttrl.types import Estimate\n"
        "class Mine:\n"
        "    def estimate(self, voted):\n"
        f"        return Estimate({arguments})\n"
    )
    with pytest.raises(UserError, match=words):
        judge(f"reward.estimator={tmp_path / 'mine.py'}:Mine").estimate(group("1", "2"), None, 1)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("(1.0,), None", "rewards_G has 1 entries for 2 completions"),
        ("(1.0, 0.0), None, (1.0,)", "advantages_G has 1 entries"),
        ("(1.0, float('nan')), None", "rewards_G holds nan, expected finite"),
        ("(1.0, 1e308), None", r"rewards_G holds 1e\+308, expected finite numbers of at most 1e"),
        ("(1.0, 10**400), None", "something else than numbers: int too large"),
        ("(1.0, 0.0), None, (-1e308, 0.0)", r"advantages_G holds -1e\+308"),
        ("(1.0, 0.0), None, None, None, 1e308", r"weight holds 1e\+308"),
        ("(1.0, 0.0), None, None, None, float('inf')", "weight holds inf"),
        ("(1.0, 0.0), None, confidence=float('nan')", "confidence holds nan"),
        ("(1.0, 0.0), None, metrics={'x': float('nan')}", r"metrics\['x'\] holds nan"),
        ("(1.0, 0.0), None, None, None, -1.0", "weight = -1.0"),
        ("('a', 'b'), None", "something else than numbers: could not convert"),
        ("None, None", "rewards_G is None"),
        ("(1.0, 0.0), 5", "label = 5, expected a str or None"),
        ("(1.0, 0.0), None, metrics={'x': 'y'}", "something else than numbers: could not convert"),
    ],
)
def test_an_estimate_that_does_not_fit_its_group(tmp_path: Any, returned: str, words: str) -> None:
    refuse_estimate(tmp_path, f"voted.vote, {returned}", words)


@pytest.mark.parametrize(
    ("vote", "words"),
    [
        ("None", "vote is of type NoneType, expected a ttrl.types.Vote"),
        ("voted", "vote is of type VotedGroup, expected a ttrl.types.Vote"),
        ("replace(voted.vote, answers_G=('1',))", r"vote\.answers_G has 1 entries for 2"),
        ("replace(voted.vote, clusters_G=())", r"vote\.clusters_G has 0 entries for 2"),
    ],
)
def test_a_vote_that_is_none(tmp_path: Any, vote: str, words: str) -> None:
    refuse_estimate(tmp_path, f"{vote}, (0.0, 0.0), None", words)


def test_arrays_are_welcome(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from ttrl.types import Estimate\n"
        "class Mine:\n"
        "    def estimate(self, voted):\n"
        "        agrees = np.array(voted.agrees_G)\n"
        "        return Estimate(voted.vote, np.float32(agrees), voted.label, keep_G=agrees)\n"
    )
    mine = judge(f"reward.estimator={tmp_path / 'mine.py'}:Mine")
    estimate = mine.estimate(group("1", "1", "2"), None, 1)
    assert (estimate.rewards_G, estimate.keep_G) == ((1.0, 1.0, 0.0), (True, True, False))
    assert {type(reward) for reward in estimate.rewards_G} == {float}


@pytest.mark.parametrize(
    ("setting", "body", "words"),
    [
        ("reward.estimator", "raise KeyError('oops')", "failed with KeyError: 'oops'.*mine.py:3"),
        ("reward.estimator", "return None", "returned None, of type NoneType: expected"),
        ("answers.extract", "return self.oops", "failed with AttributeError: .*mine.py:3"),
    ],
)
def test_what_a_users_code_raises_is_one_line(
    tmp_path: Any, setting: str, body: str, words: str
) -> None:
    (tmp_path / "mine.py").write_text(
        f"class Mine:\n    def estimate(self, voted=None):\n        {body}\n"
        "def extract(text):\n    return Mine.estimate(text)\n"
    )
    name = "Mine" if setting == "reward.estimator" else "extract"
    with pytest.raises(UserError, match=words):
        judge(f"{setting}={tmp_path / 'mine.py'}:{name}").estimate(group("1", "2"), None, 1)


@pytest.mark.parametrize("name", ["soft", "confidence", "restrain", "random"])
def test_labels_that_nobody_would_look_at(name: str) -> None:
    with pytest.raises(UserError, match=r"reward\.labels = 'teacher' would be ignored"):
        judge(f"reward.estimator={name}", "reward.labels=teacher")
    judge(f"reward.estimator={name}")


@pytest.mark.parametrize("name", ["majority", "scrl", "ddrl", "evol"])
def test_labels_from_elsewhere(name: str) -> None:
    judge(f"reward.estimator={name}", "reward.labels=teacher")
