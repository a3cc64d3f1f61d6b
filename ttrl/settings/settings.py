"""A whole run as typed settings. Defaults are in this folder, one file per section.

`ttrl.settings.recipe` reads them from TOML and the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import pydantic
import tomli_w
from pydantic import Field

from ttrl.settings.agents import AgentSettings
from ttrl.settings.answers import AnswerSettings
from ttrl.settings.checkpoint import CheckpointSettings
from ttrl.settings.critic import CriticSettings
from ttrl.settings.data import DataSettings
from ttrl.settings.evaluation import EvaluationSettings
from ttrl.settings.guard import GuardSettings
from ttrl.settings.harmony import HarmonySettings
from ttrl.settings.limits import LimitSettings
from ttrl.settings.lora import LoraSettings
from ttrl.settings.loss import LossSettings
from ttrl.settings.memory import MemorySettings
from ttrl.settings.model import ModelSettings
from ttrl.settings.optimizer import OptimizerSettings
from ttrl.settings.policy import PolicySettings
from ttrl.settings.posed import PosedSettings
from ttrl.settings.prime import PrimeSettings
from ttrl.settings.reflection import ReflectionSettings
from ttrl.settings.report import ReportSettings
from ttrl.settings.reward import RewardSettings
from ttrl.settings.reward_model import RewardModelSettings
from ttrl.settings.rollout import RolloutSettings
from ttrl.settings.rules import ALGORITHMS, broken_rules
from ttrl.settings.section import Count, Positive, Section
from ttrl.settings.selection import SelectionSettings
from ttrl.settings.serve import ServeSettings
from ttrl.settings.stopping import StoppingSettings
from ttrl.settings.stream import StreamSettings
from ttrl.settings.tracking import TrackingSettings


class Settings(Section):
    """Everything that decides what a run does."""

    name: str
    """Names the run folder."""
    algorithm: Literal["grpo", "ppo", "prime"] | None = None
    """The paper's three in a word. grpo: ``reward.advantages`` = "mean_std", unless another
    comparison within the group is set. ppo: "gae", with a critic. prime: "prime", with a reward
    model. None: what ``reward.advantages`` says."""
    model: ModelSettings
    data: DataSettings
    stream: StreamSettings = StreamSettings()
    serve: ServeSettings = ServeSettings()
    posed: PosedSettings = PosedSettings()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the order of the questions and every sample."""
    epochs: Positive = 1
    """Passes over the training questions; a last incomplete step of a pass is dropped."""
    max_steps: Positive | None = None
    """Stop after this many steps, whatever ``epochs`` says."""
    threads: Count | None = None
    """CPU threads; part of the settings because the last bit of a CPU sum depends on it."""
    rollout: RolloutSettings = RolloutSettings()
    agents: AgentSettings = AgentSettings()
    answers: AnswerSettings = AnswerSettings()
    reward: RewardSettings = RewardSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    harmony: HarmonySettings = HarmonySettings()
    reflection: ReflectionSettings = ReflectionSettings()
    guard: GuardSettings = GuardSettings()
    stopping: StoppingSettings = StoppingSettings()
    critic: CriticSettings = CriticSettings()
    prime: PrimeSettings = PrimeSettings()
    policy: PolicySettings = PolicySettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings = LoraSettings()
    memory: MemorySettings = MemorySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    selection: SelectionSettings = SelectionSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    report: ReportSettings = ReportSettings()
    limits: LimitSettings = LimitSettings()
    tracking: TrackingSettings = TrackingSettings()

    @property
    def longest(self) -> int:
        """The number of tokens of prompt and answer together, unless the model takes fewer."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    @pydantic.model_validator(mode="before")
    @classmethod
    def _advantages_of_the_algorithm(cls, tables: Any) -> Any:
        """Fill in ``reward.advantages``, where ``algorithm`` is set and that is not."""
        chosen = tables.get("algorithm") if isinstance(tables, dict) else None
        if not isinstance(chosen, str) or chosen not in ALGORITHMS:
            return tables
        reward = tables.get("reward", {})
        if isinstance(reward, RewardSettings):
            reward = reward.model_dump(exclude_unset=True)
        if isinstance(reward, dict) and "advantages" not in reward:
            return {**tables, "reward": {**reward, "advantages": ALGORITHMS[chosen]}}
        return tables

    @pydantic.model_validator(mode="after")
    def _rules(self) -> Self:
        """Refuse settings that contradict each other, with all contradictions in one message."""
        if broken := list(broken_rules(self)):
            raise ValueError("; ".join(broken))
        return self

    def flat(self) -> dict[str, Any]:
        """Return the values by name: "rollout.votes" -> 64; options of an open table, too."""
        return dict(_flat(self.model_dump()))

    def to_toml(self) -> str:
        """Return the resolved settings; `load_settings` on this text gives equal settings."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
