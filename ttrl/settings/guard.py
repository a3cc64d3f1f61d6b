"""The section [guard]: signs of a collapse that need no labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Section, Share


class GuardSettings(Section):
    """Watches label-free signs of a collapse, and of votes without voters."""

    on_collapse: Literal["warn", "stop", "ignore"] = "warn"
    """stop: end the run, with the weights from before the signs began."""
    flip_rate: Share = 0.5
    """A sign: over a pass, more labels than this share differ from those of the pass before."""
    rise: Share = 0.1
    """The majority ratio must have risen by this much over the first pass for one of the next:"""
    distinct_fall: Share = 0.1
    """A sign: distinct answers per question fell to this share of the first pass."""
    length_fall: Share = 0.4
    """A sign: response tokens fell to this share of the first pass."""
    entropy_fall: Share = 0.05
    """A sign: the policy's entropy fell to this share of the first pass."""
    sampler_kl: Annotated[float, Field(ge=0)] = 0.01
    """Warn if the engine's log-probs are further than this from the policy's before a step's first
    update: mean k3 per token, in nats (at 0.01 they differ by about 0.14); 0: never."""
    abstention: Share = 0.9
    """Warn if more than this share of the completions yields no answer."""
    abstaining_steps: Annotated[int, Field(ge=0)] = 5
    """End the run after so many such steps in a row; 0: never."""
