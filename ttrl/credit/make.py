"""The credit of a run, by ``reward.advantages``."""

from __future__ import annotations

from ttrl.credit.credit import Credit
from ttrl.credit.gae import Gae
from ttrl.credit.group_baseline import GroupBaseline
from ttrl.credit.prime import Prime
from ttrl.learner.backends import make_second_model
from ttrl.learner.trained_model import TrainedModel
from ttrl.settings import Settings


def make_credit(settings: Settings, policy: TrainedModel) -> Credit:
    """Make what ``reward.advantages`` names; its own models start where ``policy`` does."""
    match settings.reward.advantages:
        case "gae":
            changed = settings.critic.model_dump(include={"learning_rate", "weight_decay"})
            optimizer = settings.optimizer.model_copy(update=changed)
            critic = make_second_model(policy, optimizer, value_head=True)
            critic.rate_setting = "critic.learning_rate"
            return Gae(settings, policy, critic)
        case "prime":
            own = {"learning_rate", "weight_decay", "grad_clip"}
            optimizer = settings.optimizer.model_copy(update=settings.prime.model_dump(include=own))
            prm = make_second_model(policy, optimizer)
            prm.rate_setting = "prime.learning_rate"
            return Prime(settings, policy, prm)
    return GroupBaseline(settings)
