"""From a group's answers to advantages: vote, estimate, compare, select."""

from ttrl.rewards.advantages import group_advantages
from ttrl.rewards.estimators import RewardEstimator, make_estimator, register
from ttrl.rewards.selection import select
from ttrl.rewards.vote import majority_vote

__all__ = [
    "RewardEstimator",
    "group_advantages",
    "majority_vote",
    "make_estimator",
    "register",
    "select",
]
