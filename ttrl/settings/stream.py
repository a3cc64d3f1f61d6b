"""The section [stream]: questions that arrive while the run goes on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Count, Section

MONTH_S = 30 * 86400


class StreamSettings(Section):
    """Questions that arrive while the run goes on, with ``data.source = "stream"``."""

    queue: Count = 256
    """Read no further while so many accepted questions have no answer: whoever writes into a pipe
    then waits."""
    patience_s: Annotated[float, Field(ge=0, le=MONTH_S)] = 30.0
    """A step that could begin with one question waits so many seconds for others, until they are
    ``rollout.questions_per_step``; then it takes what there is."""
    idle_s: Annotated[float, Field(gt=0, le=MONTH_S)] | None = None
    """A file or folder has ended when nothing has come for so many seconds; None: only by a line
    {"end_of_stream": true}."""
    visits: Count = 1
    """Steps in a row on the same questions: each samples and votes anew. The votes of the first
    are the answer."""
    reset: Literal["never", "per_question"] = "never"
    """never: what was learned stays. per_question: each question is trained on from the starting
    adapters, answered again, and forgotten; with ``lora.rank``, one question a step."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Steps over which the learning rate rises where a stream has no ``max_steps``; then it stays.
    per_question: steps of each question."""
