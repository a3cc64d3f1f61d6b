"""The section [report]: the page that a run writes about itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Section


class ReportSettings(Section):
    """Settings of ``report.html`` in the run's folder."""

    every_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Write the page at most every so many seconds while the run goes on, and at its end; 0: not at
    all. A process beside the run does it, in at most a twentieth of the time."""
