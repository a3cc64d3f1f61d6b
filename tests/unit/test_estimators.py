"""What every reward estimator must keep, and how one is found and given options."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from groups import group, voted
from hypothesis import given
from hypothesis import strategies as st

from ttrl.rewards import make_estimator, register
from ttrl.rewards.estimators.base import RewardEstimator, estimator_names
from ttrl.types import CompletionGroup, UserError, VotedGroup

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "ddrl": {"k": 2},
    "verified": {"verifier": f"{ROOT}/bench/verifiers/casting_out_nines.py:check"},
}
"""Of estimators that cannot do without, or whose defaults need larger groups."""
BY_POSITION = {"random", "ddrl", "scope"}
"""Estimators that tell equal completions apart by their place in the group."""


def made(name: str) -> RewardEstimator:
    return make_estimator(name, OPTIONS.get(name))


answers = st.sampled_from(["7", "7.0", "8", "9", "10", None])
surprisals = st.sampled_from([0.0, 0.1, 0.5, 1.0])
voters = st.lists(st.tuples(answers, surprisals), min_size=2, max_size=24)


def sampled(drawn: list) -> CompletionGroup:
    return group(*(a for a, _ in drawn), surprisals=[s for _, s in drawn])


# ---------------------------------------------------------------------------------------------
# What they all keep


@pytest.mark.parametrize("name", estimator_names())
@given(voters)
def test_one_finite_entry_per_completion_and_a_voters_label(
    name: str, drawn: list[tuple[str | None, float]]
) -> None:
    of = voted(sampled(drawn))
    found = made(name).estimate(of)
    size = len(drawn)
    assert found == made(name).estimate(of)
    assert len(found.rewards_G) == size
    assert found.advantages_G is None or len(found.advantages_G) == size
    assert found.keep_G is None or len(found.keep_G) == size
    figures = (*found.rewards_G, *(found.advantages_G or ()), *found.metrics.values())
    assert all(math.isfinite(figure) for figure in figures)
    assert 0 <= found.confidence <= 1
    assert 0 <= found.weight <= 1
    assert found.label is None or found.label in of.vote.answers_G
    assert found.vote is of.vote


@pytest.mark.parametrize("name", sorted(set(estimator_names()) - {"random"}))
@given(voters)
def test_an_abstention_never_earns(name: str, drawn: list[tuple[str | None, float]]) -> None:
    found = made(name).estimate(voted(sampled(drawn)))
    for reward, answer in zip(found.rewards_G, found.vote.answers_G, strict=True):
        assert answer is not None or reward <= 0


@pytest.mark.parametrize("name", sorted(set(estimator_names()) - {"random"}))
def test_where_everybody_abstains_nobody_is_paid(name: str) -> None:
    found = made(name).estimate(voted(group(None, "", None)))
    assert max(found.rewards_G) <= 0
    assert len(set(found.rewards_G)) == 1
    assert max(found.advantages_G or (0.0,)) <= 0
    assert found.label is None
    assert found.confidence == 0


@pytest.mark.parametrize("name", sorted(set(estimator_names()) - BY_POSITION))
@given(voters, st.data())
def test_the_order_of_completions_leaves_no_trace(
    name: str, drawn: list[tuple[str | None, float]], data: st.DataObject
) -> None:
    of = sampled(drawn)
    order = data.draw(st.permutations(range(len(drawn))))
    shuffled = replace(of, completions=tuple(of.completions[i] for i in order))
    before, after = made(name).estimate(voted(of)), made(name).estimate(voted(shuffled))
    assert after.rewards_G == tuple(before.rewards_G[i] for i in order)
    if before.advantages_G is not None:
        assert after.advantages_G == tuple(before.advantages_G[i] for i in order)
    assert (after.label, after.weight, after.confidence, after.metrics) == (
        before.label,
        before.weight,
        before.confidence,
        before.metrics,
    )


# ---------------------------------------------------------------------------------------------
# Names and options


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"reward.estimator = 'majorty'.*did you mean 'majority'"):
        make_estimator("majorty")
    with pytest.raises(UserError, match=r"'xyz' is unknown: expected FILE.py:CLASS or one of"):
        make_estimator("xyz")


def test_a_name_belongs_to_one_estimator() -> None:
    with pytest.raises(ValueError, match="two reward estimators are named 'majority'"):
        register("majority")(type(make_estimator("majority")))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("majority", {"tau": 0.5}, "tau is unknown"),
        ("random", {"p": 1.5}, "p = 1.5: input should be less than or equal to 1"),
        ("random", {"p": "0.5"}, "p = '0.5': input should be a valid number"),
        ("soft", {"min_entropy": -1}, "min_entropy = -1: input should be greater than or equal"),
        ("soft", {"min_entropy": 2, "max_entropy": 1}, "max_entropy = 1.0 is less than min_entr"),
        ("scrl", {"tau_pos": True}, "tau_pos = True: input should be a valid number"),
        ("scrl", {"tau_low": 2}, "tau_low = 2: input should be less than or equal to 1"),
        ("restrain", {"kappa": 2.5}, "kappa = 2.5: input should be a valid integer"),
        ("restrain", {"sigma": 0}, "sigma = 0: input should be greater than or equal to 0.001"),
        ("ddrl", {"k": 1}, "k = 1: input should be greater than or equal to 2"),
        ("evol", {"similarity": 3}, "similarity = 3: input should be a valid string"),
        ("confidence", {"epsilon": 0}, "epsilon = 0: input should be greater than 0"),
        ("verified", {}, "verifier is missing"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_estimator(name, options)
    assert f"options of reward.estimator = {name!r}: {message}" in str(error.value)


# ---------------------------------------------------------------------------------------------
# A user's own


@pytest.fixture
def example(tmp_path: Path) -> str:
    """The complete example of docs/estimators.md."""
    text = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    return f"{tmp_path}/own.py:Brief"


def test_the_example_of_the_guide_works(example: str) -> None:
    # The answers are 1, 2, 3, 4 tokens long; 2.5 on average.
    of = voted(group("7", "7", "8", "7"))
    found = make_estimator(example, {"bonus": 0.5}).estimate(of)
    assert found.rewards_G == (1.5, 1.5, 0.0, 1.0)
    assert found.label == "7"
    assert make_estimator(example).estimate(of).rewards_G == (1.25, 1.25, 0.0, 1.0)


def test_the_options_of_the_example_are_checked(example: str) -> None:
    with pytest.raises(UserError, match=r"own.py:Brief': bonus = -1: input should be greater"):
        make_estimator(example, {"bonus": -1})
    with pytest.raises(UserError, match=r"own.py:Brief': bonsu is unknown"):
        make_estimator(example, {"bonsu": 1})


def test_any_class_with_estimate_will_do(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from ttrl.types import Estimate\n"
        "class Same:\n"
        "    def __init__(self, reward=1.0):\n"
        "        if reward < 0: raise ValueError('reward is negative')\n"
        "        self.reward = reward\n"
        "    def estimate(self, voted):\n"
        "        rewards_G = (self.reward,) * len(voted.vote.answers_G)\n"
        "        return Estimate(voted.vote, rewards_G, voted.label)\n"
    )
    name = f"{tmp_path}/plain.py:Same"
    of: VotedGroup = voted(group("7", None))
    assert make_estimator(name, {"reward": 2.0}).estimate(of).rewards_G == (2.0, 2.0)
    with pytest.raises(UserError, match=r"options of reward.estimator = .*'penalty'"):
        make_estimator(name, {"penalty": 1})
    with pytest.raises(UserError, match=r"options of reward.estimator = .*: reward is negative"):
        make_estimator(name, {"reward": -1})


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "other.py").write_text("def rewards():\n    return 3\n")
    for name, message in (
        ("absent.py:Own", "no file at"),
        ("other.py:Own", "defines no Own that can be called"),
        ("broken.py:Own", "failed with ZeroDivisionError: division by zero"),
        ("other.py:rewards", "expected a class with a method estimate"),
    ):
        with pytest.raises(UserError, match=r"reward.estimator = .*" + re.escape(message)):
            make_estimator(f"{tmp_path}/{name}")
