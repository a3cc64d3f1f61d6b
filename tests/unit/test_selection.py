"""Which completions are trained on."""

from dataclasses import replace

import pytest
from groups import group

from ttrl.config import Settings
from ttrl.rewards import make_estimator, select
from ttrl.types import CompletionGroup, Estimate, TrainSample


def settings(trained_samples: int, advantages: str = "mean") -> Settings:
    return Settings.model_validate(
        {
            "name": "test",
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "reward": {"advantages": advantages},
            "policy": {"trained_samples": trained_samples, "sequences_per_update": 1},
        }
    )


def estimate(of: CompletionGroup, **changes: object) -> Estimate:
    return replace(make_estimator("majority").estimate(of), **changes)


def test_first_completions_with_the_advantage_among_all_votes():
    voted = group("7", "8", "7", "7")
    assert select([voted], [estimate(voted)], settings(2)) == [
        TrainSample("q1", (7, 8, 9), (0,), (-0.5,), 0.25, 1.0),
        TrainSample("q1", (7, 8, 9), (0, 1), (-0.5, -0.5), -0.75, 1.0),
    ]


def test_advantage_setting_decides():
    voted = group("7", "8", "7", "7")
    chosen = select([voted], [estimate(voted)], settings(4, "mean_std"))
    assert [s.advantage for s in chosen] == pytest.approx([0.5, -1.5, 0.5, 0.5], rel=1e-5)


def test_groups_without_anything_to_learn_stay_with_advantage_zero():
    unanimous, mixed, silent = (
        group("7", "7.0", "7", id="unanimous"),
        group("7", "7", "8", id="mixed"),
        group(None, None, None, id="silent"),
    )
    groups = [unanimous, mixed, silent]
    chosen = select(groups, [estimate(g) for g in groups], settings(3))
    assert [s.question_id for s in chosen] == ["unanimous"] * 3 + ["mixed"] * 3 + ["silent"] * 3
    assert [s.advantage for s in chosen[:3] + chosen[6:]] == [0.0] * 6
    assert [s.advantage for s in chosen[3:6]] == pytest.approx([1 / 3, 1 / 3, -2 / 3])


def test_nothing_is_left_out():
    voted = group("7", "8", "9", None)
    own = estimate(voted, advantages_G=(0.0, 0.0, 0.0, -1.0))
    assert [s.advantage for s in select([voted], [own], settings(3))] == [0.0, 0.0, 0.0]
    assert [s.advantage for s in select([voted], [own], settings(4))] == [0.0, 0.0, 0.0, -1.0]


def test_estimators_own_advantages_mask_and_weight_are_kept():
    voted = group("7", "8", "7", "9")
    own = estimate(
        voted, advantages_G=(1.0, 2.0, 3.0, 4.0), keep_G=(False, True, False, True), weight=0.5
    )
    chosen = select([voted], [own], settings(2))
    assert [(s.advantage, s.weight, len(s.completion_ids)) for s in chosen] == [
        (2.0, 0.5, 2),
        (4.0, 0.5, 4),
    ]
    assert [s.advantage for s in select([voted], [own], settings(1))] == [2.0]


def test_one_estimate_per_group():
    voted = group("7", "8")
    with pytest.raises(ValueError, match="zip"):
        select([voted, voted], [estimate(voted)], settings(1))
