"""From a group's answers to an estimate of what they are worth: vote, compare, estimate."""

from ttrl.rewards.estimators import Estimator, RewardEstimator, make_estimator, register
from ttrl.rewards.vote import majority_vote

__all__ = [
    "Estimator",
    "RewardEstimator",
    "majority_vote",
    "make_estimator",
    "register",
]
