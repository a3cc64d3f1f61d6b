"""What a step's answers are worth, and which of them are trained on."""

from __future__ import annotations

from ttrl.credit.credit import Assigned, Credit
from ttrl.credit.gae import Gae
from ttrl.credit.group_baseline import GroupBaseline
from ttrl.credit.prime import Prime
from ttrl.learner.backends import make_second_model
from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import Settings

__all__ = ["Assigned", "Credit", "make_credit"]


def make_credit(settings: Settings, policy: TrainedModel) -> Credit:
    """Make what ``reward.advantages`` names; its own models start where ``policy`` does."""
    match settings.reward.advantages:
        case "gae":
            changed = settings.critic.model_dump(include={"learning_rate", "weight_decay"})
            optimizer = settings.optimizer.model_copy(update=changed)
            return Gae(settings, policy, make_second_model(policy, optimizer, value_head=True))
        case "prime":
            own = {"learning_rate", "weight_decay", "grad_clip"}
            optimizer = settings.optimizer.model_copy(update=settings.prime.model_dump(include=own))
            return Prime(settings, policy, make_second_model(policy, optimizer))
    return GroupBaseline(settings)
