"""The section [prime]: implicit process rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Section


class PrimeSettings(Section):
    """The reward model of ``reward.advantages = "prime"`` (PRIME, arXiv 2502.01456).

    It is a second language model, which starts like the policy; the reward of a token is by how
    much more likely it is to this model than to the starting one.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Learning rate of its AdamW, constant."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Its AdamW's decoupled weight decay."""
    grad_clip: Annotated[float, Field(gt=0)] = 10.0
    """Largest global gradient norm of its updates."""
    beta: Annotated[float, Field(gt=0)] = 0.05
    """Reward of a token per nat of log-ratio."""
    update: Literal["after", "before", "none"] = "after"
    """after: an update's samples are scored before the reward model learns from them. before: it
    learns from all of a step's samples first. none: it never learns, and all tokens earn 0."""
    process_coef: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the advantage by process rewards."""
    outcome_coef: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the advantage by the answer's reward."""
