"""The section [reflection]: labels that the policy picks when it reads its own solutions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Positive, Section


class ReflectionSettings(Section):
    """The pool of ``reward.labels = "reflection"`` (SR-TTRL, ICML 2026), and who reads it."""

    candidates: Annotated[int, Field(ge=2, le=64)] = 8
    """Different answers in the pool, at most: those with the most votes."""
    summary_tokens: Annotated[int, Field(ge=0)] = 256
    """The policy sums up each of their solutions in so many tokens; 0: it reads the solutions
    themselves. What there is no room for is cut at its beginning."""
    tokens: Positive = 1024
    """Tokens in which the policy compares them, and picks one."""
