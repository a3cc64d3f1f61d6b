"""Reward estimators: what the vote on unlabeled answers is worth, one file per idea."""

from ttrl.rewards.estimators import (  # registered by being imported
    agreement,
    balance,
    consensus,
    control,
    novelty,
    shares,
    subgroups,
    verifier,
    visits,
)
from ttrl.rewards.estimators.base import Estimator, RewardEstimator, make_estimator, register

__all__ = [
    "Estimator",
    "RewardEstimator",
    "agreement",
    "balance",
    "consensus",
    "control",
    "make_estimator",
    "novelty",
    "register",
    "shares",
    "subgroups",
    "verifier",
    "visits",
]
