"""The section [serve]: questions that are sent to a server."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Count, Section

DAY_S = 86400


class ServeSettings(Section):
    """What ``ttrl serve`` promises; only there."""

    held_s: Annotated[float, Field(gt=0, le=DAY_S)] = 5.0
    """Seconds that learning may make an answer wait, at most: weights are brought to the engine
    only where nobody who waits would then have waited longer. A model whose first push takes
    longer is refused."""
    wait_s: Annotated[float, Field(gt=0, le=DAY_S)] = 300.0
    """A request that has no answer after so many seconds is told where it will be."""
    body_s: Annotated[float, Field(gt=0, le=DAY_S)] = 30.0
    """Seconds in which a request's body must have arrived."""
    connections: Count = 1024
    """Connections at the same time, at most."""
