"""The section [checkpoint]: what a run saves so that it can be continued."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Positive, Section


class CheckpointSettings(Section):
    """Settings of checkpoints, from which a run continues, bit for bit, with ``--resume``."""

    every: Annotated[int, Field(ge=0)] = 10
    """Save after every so many steps, and after the last one; 0: never. One checkpoint takes 12
    bytes per trained parameter."""
    keep: Positive = 2
    """The last checkpoints that are kept."""
    best: Literal["none", "majority_ratio", "held_out"] = "none"
    """Also keep the best one. majority_ratio: that with the highest mean over the last pass,
    without the signs of a collapse (see ``guard``). held_out: that with the highest pass@1 on the
    held-out questions."""
    asynchronous: bool = True
    """Write while the run goes on, from a copy in the machine's memory; one at a time."""
