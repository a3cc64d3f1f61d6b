"""The section [lora]: low-rank adapters in place of all weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Count, Section


class LoraSettings(Section):
    """Low-rank adapters, which are trained in place of all weights (LoRA, arXiv 2106.09685)."""

    rank: Count | None = None
    """Rank of the adapters that are trained instead of all weights; None: all weights. The base is
    then kept in ``model.dtype``, and serves as the KL reference without a copy."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapters' product is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False)] = "all-linear"
    """Names of the layers with adapters, for example ["q_proj", "v_proj"]; all-linear: all
    but the output layer, which can have none."""
