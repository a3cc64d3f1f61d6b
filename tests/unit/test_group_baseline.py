"""Which completions are trained on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import groups
import pytest
from groups import group
from tiny_models import answer_of

from ttrl.credit.group_baseline import GroupBaseline
from ttrl.settings import Settings
from ttrl.types import CompletionGroup, Estimate, FinishReason, TrainSample


def settings(
    trained_samples: int, advantages: str = "mean", selection: str = "first", seed: int = 0
) -> Settings:
    return Settings.model_validate(
        {
            "name": "test",
            "seed": seed,
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "reward": {"advantages": advantages, "selection": selection},
            "policy": {"trained_samples": trained_samples, "sequences_per_update": 1},
        }
    )


def estimate(of: CompletionGroup, **changes: object) -> Estimate:
    return replace(groups.estimate(of), **changes)


def samples(
    voted: list[CompletionGroup], estimates: list[Estimate], settings: Settings
) -> list[TrainSample]:
    return GroupBaseline(settings).assign(voted, estimates, step=1).samples


def chosen_of(
    size: int, settings: Settings, step: int = 1, id: str = "q1", **changes: object
) -> list[int]:
    """The indices that are chosen of a group of this size."""
    voted = group(*["7"] * size, id=id)
    assigned = GroupBaseline(settings).assign([voted], [estimate(voted, **changes)], step)
    found, (indices,) = assigned.samples, assigned.chosen
    # The i-th completion is i + 1 tokens long.
    assert [len(answer_of(sample)) - 1 for sample in found] == indices
    assert indices == sorted(set(indices))
    return indices


def test_first_completions_with_the_advantage_among_all_votes() -> None:
    voted = group("7", "8", "7", "7")
    assert samples([voted], [estimate(voted)], settings(2)) == [
        TrainSample.of_answer("q1", (7, 8, 9), (0,), (-0.5,), 0.25, 1.0),
        TrainSample.of_answer("q1", (7, 8, 9), (0, 1), (-0.5, -0.5), -0.75, 1.0),
    ]


def test_advantage_setting_decides() -> None:
    voted = group("7", "8", "7", "7")
    chosen = samples([voted], [estimate(voted)], settings(4, "mean_std"))
    assert [s.advantages[0] for s in chosen] == pytest.approx([0.5, -1.5, 0.5, 0.5], rel=1e-5)


def test_opo_knows_the_answers_lengths() -> None:
    # 1 to 4 tokens; (1 + 3 + 4) / 10 of all are of agreeing answers
    voted = group("7", "8", "7", "7")
    chosen = samples([voted], [estimate(voted)], settings(4, "opo"))
    assert [s.advantages[0] for s in chosen] == pytest.approx([0.2, -0.8, 0.2, 0.2])


def test_reinforce_pp_whitens_the_returns_of_all_trained_tokens() -> None:
    """Of two answers each: 1 token of reward 1 and 2 of 0, and, of a unanimous group, 3 of 1.

    So 4 tokens have 1 and 2 have 0: mean 2/3, and (4 / 9 + 2 * 4 / 9) / 5 = 4 / 15 is the variance.
    """
    mixed, same = group("7", "8", "7", id="mixed"), group("5", "5", "5", id="same")
    chosen = samples([mixed, same], [estimate(mixed), estimate(same)], settings(2, "reinforce_pp"))
    up, down = (1 / 3) / math.sqrt(4 / 15), (-2 / 3) / math.sqrt(4 / 15)
    assert [len(s.advantages) for s in chosen] == [1, 2, 1, 2]
    assert [s.advantages for s in chosen] == [
        pytest.approx((a,) * n, rel=1e-7) for a, n in ((up, 1), (down, 2), (up, 1), (up, 2))
    ]


def test_reinforce_pp_baseline_whitens_what_the_group_leaves() -> None:
    """1/3 on 1 token, -2/3 on 2, 0 on 3: mean -1/6, Σ x² = 1, so variance (1 - 1/6) / 5 = 1/6."""
    mixed, same = group("7", "8", "7", id="mixed"), group("5", "5", "5", id="same")
    chosen = samples(
        [mixed, same], [estimate(mixed), estimate(same)], settings(2, "reinforce_pp_baseline")
    )
    whitened = [(x + 1 / 6) * math.sqrt(6) for x in (1 / 3, -2 / 3, 0, 0)]
    assert [s.advantages[-1] for s in chosen] == pytest.approx(whitened, rel=1e-7)


@pytest.mark.parametrize("kind", ["reinforce_pp", "reinforce_pp_baseline"])
def test_nothing_but_unanimous_groups_whitens_to_zeros(kind: str) -> None:
    voted = group("7", "7", "7")
    chosen = samples([voted, voted], [estimate(voted)] * 2, settings(3, kind))
    assert {a for s in chosen for a in s.advantages} == {0.0}


def test_an_estimator_s_own_advantages_are_whitened_instead() -> None:
    voted = group("7", "8")  # tokens: 3, 0, 0; mean 1, variance 3
    own = estimate(voted, advantages_G=(3.0, 0.0))
    chosen = samples([voted], [own], settings(2, "reinforce_pp"))
    assert [s.advantages[0] for s in chosen] == pytest.approx([2 / 3**0.5, -1 / 3**0.5])


def test_groups_without_anything_to_learn_stay_with_advantage_zero() -> None:
    unanimous, mixed, silent = (
        group("7", "7.0", "7", id="unanimous"),
        group("7", "7", "8", id="mixed"),
        group(None, None, None, id="silent"),
    )
    three = [unanimous, mixed, silent]
    chosen = samples(three, [estimate(g) for g in three], settings(3))
    assert [s.question_id for s in chosen] == ["unanimous"] * 3 + ["mixed"] * 3 + ["silent"] * 3
    assert [s.advantages[0] for s in chosen[:3] + chosen[6:]] == [0.0] * 6
    assert [s.advantages[0] for s in chosen[3:6]] == pytest.approx([1 / 3, 1 / 3, -2 / 3])


def test_nothing_is_left_out() -> None:
    voted = group("7", "8", "9", None)
    own = estimate(voted, advantages_G=(0.0, 0.0, 0.0, -1.0))
    assert [s.advantages[0] for s in samples([voted], [own], settings(3))] == [0.0, 0.0, 0.0]
    assert [s.advantages[0] for s in samples([voted], [own], settings(4))] == [0.0, 0.0, 0.0, -1.0]


def test_estimators_own_advantages_mask_and_weight_are_kept() -> None:
    voted = group("7", "8", "7", "9")
    own = estimate(
        voted, advantages_G=(1.0, 2.0, 3.0, 4.0), keep_G=(False, True, False, True), weight=0.5
    )
    chosen = samples([voted], [own], settings(2))
    assert [(s.advantages[0], s.weight, len(answer_of(s))) for s in chosen] == [
        (2.0, 0.5, 2),
        (4.0, 0.5, 4),
    ]
    assert [s.advantages[0] for s in samples([voted], [own], settings(1))] == [2.0]


def test_truncated_answers_count_and_are_not_trained_on() -> None:
    """Where that is asked for; without a mask they are."""
    voted = group("7", "8", "7", "9", "7")
    cut = tuple(
        replace(c, finish_reason=FinishReason.LENGTH) if i in (0, 3) else c
        for i, c in enumerate(voted.completions)
    )
    voted, masked = replace(voted, completions=cut), settings(2)
    masked = masked.model_copy(
        update={"policy": masked.policy.model_copy(update={"mask_truncated": True})}
    )
    found = samples([voted], [estimate(voted)], masked)  # the mean is 3 / 5 with them
    assert [len(answer_of(s)) for s in found] == [2, 3]
    assert [s.advantages[0] for s in found] == pytest.approx([-0.6, 0.4])
    assert [len(answer_of(s)) for s in samples([voted], [estimate(voted)], settings(2))] == [1, 2]
    kept = estimate(voted, keep_G=(True, False, False, True, True))
    assert [len(answer_of(s)) for s in samples([voted], [kept], masked)] == [5]
    all_cut = tuple(replace(c, finish_reason=FinishReason.LENGTH) for c in voted.completions)
    assert samples([replace(voted, completions=all_cut)], [estimate(voted)], masked) == []


def test_one_estimate_per_group() -> None:
    voted = group("7", "8")
    with pytest.raises(ValueError, match="zip"):
        samples([voted, voted], [estimate(voted)], settings(1))


# ---------------------------------------------------------------------------------------------
# Which ones


def test_first_are_the_first_that_are_kept() -> None:
    assert chosen_of(5, settings(3)) == [0, 1, 2]
    assert chosen_of(5, settings(3), keep_G=(False, True, False, True, True)) == [1, 3, 4]
    assert chosen_of(5, settings(3), keep_G=(False,) * 5) == []


def test_random_depends_on_seed_step_and_question_alone() -> None:
    random = settings(4, selection="random")
    first = chosen_of(16, random)
    assert first == chosen_of(16, random)
    others = [
        chosen_of(16, random, step=2),
        chosen_of(16, random, id="q2"),
        chosen_of(16, settings(4, selection="random", seed=1)),
    ]
    assert len({tuple(chosen) for chosen in (first, *others)}) == 4


def test_random_is_fair_and_takes_only_what_is_kept() -> None:
    random, keep_G = settings(2, selection="random"), (True, False, True, True, True)
    drawn = Counter(i for s in range(400) for i in chosen_of(5, random, step=s, keep_G=keep_G))
    assert sum(drawn.values()) == 800
    # 400 draws of 2 in 4 each: mean 200, standard deviation 10
    assert all(150 < drawn[i] < 250 for i in (0, 2, 3, 4))
    assert drawn[1] == 0
    assert chosen_of(5, settings(5, selection="random"), keep_G=keep_G) == [0, 2, 3, 4]
    assert chosen_of(5, random, keep_G=(False,) * 5) == []


@pytest.mark.parametrize(
    ("advantages_G", "trained", "chosen"),
    [
        ((1, 1, 1, -1, -1, -1), 4, [0, 1, 3, 4]),  # two of each
        ((1, 1, 1, -1, 0, -1), 4, [0, 1, 3, 4]),  # no advantage is not a positive one
        ((1, 1, 1, -1, -1, -1), 3, [0, 3, 4]),  # of three, one with
        ((1, 1, 1, 1, 1, -1), 4, [0, 1, 2, 5]),  # one without: filled up with others
        ((-1, -1, -1, -1, -1, 1), 4, [0, 1, 2, 5]),
        ((-1, -1, -1, -1, -1, -1), 4, [0, 1, 2, 3]),
        ((1, 1, 1, 1, 1, 1), 4, [0, 1, 2, 3]),
        ((1, 1, -1, -1, 1, -1), 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_balanced_takes_as_many_with_a_positive_advantage_as_without(
    advantages_G: tuple[float, ...], trained: int, chosen: list[int]
) -> None:
    balanced = settings(trained, selection="balanced")
    assert chosen_of(6, balanced, advantages_G=advantages_G) == chosen


def test_balanced_takes_only_what_is_kept() -> None:
    keep_G = (False, True, True, True, True, False)
    advantages_G = (1.0, 1.0, 1.0, -1.0, 1.0, -1.0)
    balanced = settings(4, selection="balanced")
    assert chosen_of(6, balanced, advantages_G=advantages_G, keep_G=keep_G) == [1, 2, 3, 4]
    balanced = settings(2, selection="balanced")
    assert chosen_of(6, balanced, advantages_G=advantages_G, keep_G=keep_G) == [1, 3]
