"""Reward estimators: what a ballot of unlabeled answers is worth, one file per idea."""

from ttrl.rewards.estimators import agreement  # registered by being imported
from ttrl.rewards.estimators.base import Estimator, RewardEstimator, make_estimator, register

__all__ = ["Estimator", "RewardEstimator", "agreement", "make_estimator", "register"]
