"""The section [optimizer]: AdamW and its learning rate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Section, Share

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Section):
    """AdamW and its learning rate."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    """Peak learning rate of AdamW."""
    warmup_share: Share = 0.03
    """Share of the run's steps over which the learning rate rises linearly."""
    final_lr_share: Share = 0.0
    """The cosine ends at this share of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)  # TOML has only lists
    """AdamW's moment decay rates."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
