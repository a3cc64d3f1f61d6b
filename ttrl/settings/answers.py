"""The section [answers]: from completions to answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Count, Section


class AnswerSettings(Section):
    """Settings for reading answers from completions, and for when two are the same."""

    extract: str = "boxed"
    """boxed: the last complete \\boxed{...}. choice: that, else the last letter A-Z that stands
    alone as a choice. boxed_or_number: the box, else the last number. Or FILE.py:FUNCTION, a
    function from the completion's text to the answer or None."""
    symbolic: bool = True
    """Compare by computer algebra what spelling rules leave open, in worker processes."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """Seconds for one symbolic question; what takes longer is compared by its spelling."""
    memory_mb: Annotated[int, Field(ge=256)] = 1024
    """Address space of one worker process."""
    workers: Count | None = None
    """Worker processes at most; None: one per CPU core. They start when first needed."""
