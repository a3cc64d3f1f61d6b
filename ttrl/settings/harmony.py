"""The section [harmony]: labels that hold under a paraphrase."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttrl.settings.section import Positive, Section


class HarmonySettings(Section):
    """The paraphrase of ``reward.labels = "harmony"`` (Self-Harmony, arXiv 2511.01191)."""

    paraphrase: str = "policy"
    """Who says a question in other words: policy, or FILE.py:FUNCTION, your own from a text to a
    text."""
    votes: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """Answers to the paraphrase, beside the ``rollout.votes`` to the question; None: as many. They
    are not trained on. For the samples of a run without a paraphrase, halve both."""
    tokens: Positive = 512
    """policy: a paraphrase may have so many tokens; one that has more is none."""
