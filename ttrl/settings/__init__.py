"""A run as typed settings: what can be set, its defaults, and the rules between settings."""

from ttrl.settings.answers import AnswerSettings
from ttrl.settings.checkpoint import CheckpointSettings
from ttrl.settings.critic import CriticSettings
from ttrl.settings.data import DataSettings
from ttrl.settings.evaluation import EvaluationSettings
from ttrl.settings.guard import GuardSettings
from ttrl.settings.lora import LoraSettings
from ttrl.settings.loss import LossSettings
from ttrl.settings.memory import MemorySettings
from ttrl.settings.model import ModelSettings
from ttrl.settings.optimizer import OptimizerSettings
from ttrl.settings.policy import PolicySettings
from ttrl.settings.posed import PosedSettings
from ttrl.settings.prime import PrimeSettings
from ttrl.settings.reward import RewardSettings
from ttrl.settings.rollout import RolloutSettings
from ttrl.settings.section import Section
from ttrl.settings.selection import SelectionSettings
from ttrl.settings.settings import Settings
from ttrl.settings.stopping import StoppingSettings
from ttrl.settings.stream import StreamSettings
from ttrl.settings.tracking import TrackingSettings

__all__ = [
    "AnswerSettings",
    "CheckpointSettings",
    "CriticSettings",
    "DataSettings",
    "EvaluationSettings",
    "GuardSettings",
    "LoraSettings",
    "LossSettings",
    "MemorySettings",
    "ModelSettings",
    "OptimizerSettings",
    "PolicySettings",
    "PosedSettings",
    "PrimeSettings",
    "RewardSettings",
    "RolloutSettings",
    "Section",
    "SelectionSettings",
    "Settings",
    "StoppingSettings",
    "StreamSettings",
    "TrackingSettings",
]
