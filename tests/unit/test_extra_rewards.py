"""Several rewards: what each says, and the advantages of their sum, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from groups import completion, group

from ttrl.answers import Grader
from ttrl.credit.group_baseline import GroupBaseline
from ttrl.credit.several_rewards import total_rewards
from ttrl.evaluation.metrics import vote_metrics
from ttrl.rewards.extra import soft_overlong
from ttrl.rewards.scorer import GroupScorer
from ttrl.settings import Settings
from ttrl.settings.recipe import load_settings
from ttrl.types import CompletionGroup, Estimate, PastVote, TrainSample, UserError

OWN = """
def brief(group):
    return [1.0 if len(c.token_ids) <= 2 else 0.0 for c in group.completions]

def few(group):
    return [1.0]

def text(group):
    return ["long"] * len(group.completions)

def endless(group):
    return [float("inf")] * len(group.completions)

def breaks(group):
    raise KeyError("broken")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def settings(*overrides: str) -> Settings:
    smaller = ["rollout.votes=4", "policy.trained_samples=4", "rollout.max_new_tokens=8"]
    more = ["policy.sequences_per_update=4", *overrides]
    return load_settings("tiny-arithmetic", overrides=[*smaller, *more])


def estimated(voted: CompletionGroup, chosen: Settings) -> Estimate:
    return GroupScorer(chosen, Grader(chosen.answers)).estimate(voted, None, 1)


def samples(chosen: Settings, *voted: CompletionGroup) -> list[TrainSample]:
    estimates = [estimated(of, chosen) for of in voted]
    return GroupBaseline(chosen).assign(voted, estimates, 1).samples


def test_soft_overlong_falls_from_zero_to_minus_one_over_the_buffer() -> None:
    lengths = (1, 6, 7, 8, 9, 10)
    of = replace(group("7"), completions=tuple(completion("", tokens=n) for n in lengths))
    assert soft_overlong(of, longest=10, buffer=4) == [0, 0, -0.25, -0.5, -0.75, -1]
    assert soft_overlong(of, longest=10, buffer=10) == [-n / 10 for n in lengths]
    assert math.copysign(1, soft_overlong(of, 10, 4)[0]) == 1  # no -0.0


def test_the_scorer_adds_them_to_the_estimate(own: str) -> None:
    voted = group("7", "8", "7", "7")  # 1 to 4 tokens, of 8
    chosen = settings(
        "reward.overlong_buffer=5", f'reward.extra={{soft_overlong=0.5, "{own}:brief"=2}}'
    )
    estimate = estimated(voted, chosen)
    assert estimate.rewards_G == (1.0, 0.0, 1.0, 1.0)  # as without
    assert estimate.extra_rewards == {
        "soft_overlong": (0.0, 0.0, 0.0, -0.2),
        f"{own}:brief": (1.0, 1.0, 0.0, 0.0),
    }
    assert total_rewards(estimate, chosen.reward) == pytest.approx((3.0, 2.0, 1.0, 0.9))
    history = {voted.question.id: (PastVote(1, estimate.label, 1.0),)}
    figures = vote_metrics([voted], [estimate], history, [[0]])
    assert figures["reward/extra/soft_overlong"] == pytest.approx(-0.05)
    assert figures["reward/extra/brief"] == 0.5
    assert figures["reward/majority_reward"] == 0.75


def test_without_any_the_total_is_the_estimator_s_reward() -> None:
    chosen = settings()
    estimate = estimated(group("7", "8", "7"), chosen)
    assert estimate.extra_rewards == {}
    assert total_rewards(estimate, chosen.reward) == estimate.rewards_G


def test_summed_before_they_are_compared(own: str) -> None:
    """1 + 2, 0 + 2, 1, 1: the mean is 1.75; a unanimous group is compared by the rest, 2 2 0."""
    chosen = settings("reward.advantages=mean", f'reward.extra={{"{own}:brief"=2}}')
    found = samples(chosen, group("7", "8", "7", "7"), group("5", "5", "5", id="same"))
    assert [s.advantages[0] for s in found] == pytest.approx(
        [1.25, 0.25, -0.75, -0.75, 2 / 3, 2 / 3, -4 / 3]
    )


def whitened(advantages: Sequence[float], lengths: Sequence[int]) -> list[float]:
    tokens = [a for a, n in zip(advantages, lengths, strict=True) for _ in range(n)]
    mean = sum(tokens) / len(tokens)
    variance = sum((a - mean) ** 2 for a in tokens) / (len(tokens) - 1)
    return [(a - mean) / math.sqrt(variance + 1e-8) for a in advantages]


def test_gdpo_compares_each_and_whitens_the_sum(own: str) -> None:
    """1 0 1 1 has mean 3/4 and deviation 1/2, so ±: 1/2, -3/2, 1/2, 1/2; 1 1 0 0 has 1/√3."""
    chosen = settings(
        "reward.extra_aggregation=normalize_then_sum", f'reward.extra={{"{own}:brief"=2}}'
    )
    found = samples(chosen, group("7", "8", "7", "7"))
    root = math.sqrt(3) / 2
    summed = [0.5 + 2 * root, -1.5 + 2 * root, 0.5 - 2 * root, 0.5 - 2 * root]
    assert [len(s.advantages) for s in found] == [1, 2, 3, 4]
    expected = whitened(summed, (1, 2, 3, 4))
    for sample, advantage in zip(found, expected, strict=True):
        assert sample.advantages == pytest.approx((advantage,) * len(sample.advantages), rel=1e-5)


def pair(id: str, *lengths: int) -> CompletionGroup:
    """A right answer and a wrong one, so long each."""
    both = group("7", "8", id=id)
    longer = [completion(c.text, tokens=n) for c, n in zip(both.completions, lengths, strict=True)]
    return replace(both, completions=tuple(longer))


def test_gdpo_tells_apart_what_a_sum_does_not(own: str) -> None:
    """Better in one reward, or in both: normalized, the sums 3, 2 and 3, 0 are alike."""
    one, both = pair("one", 1, 1), pair("both", 1, 3)
    extra = f'reward.extra={{"{own}:brief"=2}}'
    plain = [s.advantages[0] for s in samples(settings(extra), one, both)]
    assert plain == pytest.approx([0.5**0.5, -(0.5**0.5)] * 2, rel=1e-5)
    gdpo = settings(extra, "reward.extra_aggregation=normalize_then_sum")
    apart = [s.advantages[0] for s in samples(gdpo, one, both)]
    assert apart[2] - apart[3] == pytest.approx(3 * (apart[0] - apart[1]))
    assert apart[0] > apart[1]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("few", r"returned 1 numbers for 2 completions, \[1\.0\]"),
        ("text", r"returned \['long', 'long'\]: expected a number per completion"),
        ("endless", r"returned 2 numbers for 2 completions, \[inf, inf\]"),
        ("breaks", r"reward\.extra = .*own\.py:breaks' failed with KeyError: 'broken'"),
    ],
)
def test_what_a_function_may_not_return(function: str, problem: str, own: str) -> None:
    chosen = settings(f'reward.extra={{"{own}:{function}"=1}}')
    with pytest.raises(UserError, match=problem):
        estimated(group("7", "8"), chosen)


def test_what_is_found_before_anything_is_sampled(own: str, tmp_path: Path) -> None:
    for extra, problem in (
        ('"soft_overlng"=1', r"did you mean 'soft_overlong'\?\): expected soft_overlong, or FILE"),
        (f'"{own}:absent"=1', "defines no absent"),
        ('"nowhere.py:brief"=1', r"no file at nowhere\.py"),
    ):
        chosen = settings(f"reward.extra={{{extra}}}")
        with pytest.raises(UserError, match=problem):
            GroupScorer(chosen, Grader(chosen.answers))
    (tmp_path / "other.py").write_text(OWN)
    both = settings(f'reward.extra={{"{own}:brief"=1, "{tmp_path}/other.py:brief"=1}}')
    with pytest.raises(UserError, match=r"names \['brief'\] twice"):
        GroupScorer(both, Grader(both.answers))


def test_own_advantages_leave_nothing_to_add_to(own: str, tmp_path: Path) -> None:
    extra = f'reward.extra={{"{own}:brief"=1}}'
    for name in ("ddrl", "restrain"):
        chosen = settings(f"reward.estimator={name}", extra)
        with pytest.raises(UserError, match=f"reward.estimator = '{name}' brings its own advant"):
            GroupScorer(chosen, Grader(chosen.answers))
    (tmp_path / "mine.py").write_text(
        "from ttrl.types import Estimate\n"
        "class Mine:\n"
        "    def estimate(self, voted):\n"
        "        zeros = (0.0,) * len(voted.agrees_G)\n"
        "        return Estimate(voted.vote, zeros, voted.label, advantages_G=zeros)\n"
    )
    chosen = settings(f"reward.estimator={tmp_path}/mine.py:Mine", extra)
    with pytest.raises(UserError, match=r"mine\.py:Mine' brings its own advantages"):
        estimated(group("7", "8"), chosen)
