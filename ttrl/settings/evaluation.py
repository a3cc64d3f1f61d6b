"""The section [evaluation]: measurement against the answer key."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Count, Section, Temperature


class EvaluationSettings(Section):
    """Measurement against the answer key, before and after training."""

    samples: Count = 16
    """Answers per question; pass@1 is their mean, maj@k their vote."""
    temperature: Temperature = 0.6
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    greedy: bool = False
    """Also measure the most probable answer, token by token: one more answer per question.
    ``ttrl eval`` does, unless it is set to false."""
    every: Annotated[int, Field(ge=0)] = 0
    """Also measure after every so many steps; 0: only before and after."""
