"""From a group's answers to advantages: vote, estimate, compare, select."""

from ttrl.credit.advantages import group_advantages
from ttrl.credit.selection import select
from ttrl.rewards.estimators import Estimator, RewardEstimator, make_estimator, register
from ttrl.rewards.vote import majority_vote

__all__ = [
    "Estimator",
    "RewardEstimator",
    "group_advantages",
    "majority_vote",
    "make_estimator",
    "register",
    "select",
]
