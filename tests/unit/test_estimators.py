"""What each reward estimator pays, and how it is found."""

import pytest
from groups import group

from ttrl.rewards import make_estimator, register
from ttrl.types import UserError


def test_majority_pays_the_winning_class_whatever_its_spelling():
    estimate = make_estimator("majority").estimate(group("1/2", "3", "0.5", None, r"\frac12"))
    assert estimate.rewards_G == (1.0, 0.0, 1.0, 0.0, 1.0)
    assert estimate.label == "0.5"
    assert estimate.confidence == estimate.vote.share == 0.6
    assert estimate.vote.clusters_G == (0, 1, 0, None, 0)
    assert (estimate.advantages_G, estimate.keep_G, estimate.weight) == (None, None, 1.0)


def test_empty_boxes_and_missing_ones_are_never_paid():
    estimate = make_estimator("majority").estimate(group("", None, "", "", "4"))
    assert estimate.rewards_G == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert estimate.label == "4"


def test_without_a_majority_nobody_is_paid():
    estimate = make_estimator("majority").estimate(group(None, "", None))
    assert estimate.rewards_G == (0.0, 0.0, 0.0)
    assert estimate.label is None
    assert estimate.confidence == 0.0


def test_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match=r"reward.estimator = 'majorty'.*did you mean 'majority'"):
        make_estimator("majorty")
    with pytest.raises(UserError, match=r"'xyz' is unknown: expected one of majority"):
        make_estimator("xyz")


def test_a_name_belongs_to_one_estimator():
    with pytest.raises(ValueError, match="two reward estimators are named 'majority'"):
        register("majority")(type(make_estimator("majority")))
