"""The section [critic]: the value model of PPO, and how values become advantages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Section, Share


class CriticSettings(Section):
    """The critic of ``reward.advantages = "gae"`` (PPO): the starting model with a value head."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate of its AdamW, constant; betas and gradient norm are those of [optimizer]."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Its AdamW's decoupled weight decay."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """First steps of the run in which the critic alone is trained."""
    value_clip: Annotated[float, Field(gt=0)] = 0.5
    """How far a value may move from what it was before the update: further away it has no
    gradient, unless it has to come back."""
    gamma: Share = 1.0
    """Discount of later rewards, per token."""
    gae_lambda: Share = 1.0
    """lambda of generalized advantage estimation, for advantages and returns; 1: without bias."""
    length_adaptive: Annotated[float, Field(gt=0)] | None = None
    """alpha of the advantages' own lambda = 1 - 1 / (alpha x tokens) (VAPO); returns have
    ``gae_lambda``."""
