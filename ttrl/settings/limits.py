"""The section [limits]: how long each phase may take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Section

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


class LimitSettings(Section):
    """Seconds after which a phase counts as stuck: the run ends and says where it was."""

    start_s: Seconds = 3600
    """Loading the model and starting the engine."""
    push_s: Seconds = 1800
    """Bringing the policy's weights into the engine."""
    rollout_s: Seconds = 14400
    """Sampling and judging the votes of one step."""
    update_s: Seconds = 14400
    """The update of one step."""
    eval_s: Seconds = 43200
    """One measurement of one set of questions."""
    save_s: Seconds = 7200
    """Waiting for a checkpoint to be on disk, where the run must wait for it."""
