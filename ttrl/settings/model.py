"""The section [model]: the policy's starting point."""

from __future__ import annotations

from typing import Literal

from ttrl.settings.section import Section


class ModelSettings(Section):
    """The policy's starting point."""

    path: str
    """A folder in the Hugging Face format, a hub name, or "tiny-base" (shipped with ttrl)."""
    revision: str | None = None
    """Hub commit, tag or branch; pin it for a run that others can repeat."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matrix products in training, and of the rollout engine's weights. The policy's
    own weights and optimizer state are float32."""
