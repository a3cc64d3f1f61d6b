"""The section [selection]: how ``ttrl eval --select`` chooses among the answers to a question."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Count, Positive, Section

Part = Annotated[float, Field(gt=0, le=1)]


class SelectionSettings(Section):
    """The rules of ``ttrl eval --select``, and how often they are tried."""

    top_logprobs: Annotated[int, Field(ge=2, le=65535)] = 20
    """Likeliest tokens of each place that confidences are computed from; as many as the vocabulary
    has, or more: all of them. Noted where a rule asks for confidences."""
    draws: Count = 200
    """Random subsets of a question's answers that each rule chooses from, for each number."""
    borda_power: Annotated[float, Field(ge=0, le=10)] = 0.5
    """borda: the r-th most certain of n answers has (n - r + 1) to this power votes."""
    confidence: Literal["mean", "tail", "lowest", "bottom"] = "mean"
    """deepconf: an answer's confidence is the mean of its tokens', of its last ``window`` tokens',
    the lowest of its groups', or the mean of the lowest tenth of them. A group is ``window`` tokens
    in a row."""
    window: Positive = 2048
    """deepconf: tokens of a group. A shorter answer is one group."""
    keep: Part = 1.0
    """deepconf: only this share of the answers votes, the most confident ones."""
    warm_up: Count = 16
    """deepconf, stopping early: so many answers are sampled to their end."""
    warm_up_keep: Part = 0.9
    """deepconf, stopping early: what this share of them had as its lowest group, or more, is the
    least confidence that later answers go on with."""
    at_once: Count = 1
    """deepconf, stopping early: so many answers are begun together after the warm-up, before it is
    asked again whether the votes agree. More keep an engine busy, and save less."""
    consensus: Part = 0.95
    """deepconf, stopping early: no further answer is sampled once this share of the votes agrees;
    1: once all do."""
