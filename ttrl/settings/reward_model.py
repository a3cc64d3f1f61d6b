"""The section [reward_model]: how a reward model reads solutions, whichever it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Count, Positive, Section, Temperature

Reduction = Literal["last", "min", "product", "mean"]
"""How the scores of a solution's steps become one."""


class RewardModelSettings(Section):
    """How a reward model reads solutions. It computes in ``model.dtype``, like the policy."""

    revision: str | None = None
    """Hub commit, tag or branch of the reward model."""
    step: Annotated[str, Field(min_length=1)] | None = None
    """What ends a step of a solution; None: what models of its kind were trained with, a line
    break (skywork-prm, math-shepherd, tiny-prm) or an empty line."""
    reduce: Reduction = "last"
    """How the scores of a solution's steps become one, where a single number is needed."""
    batch_size: Count = 16
    """Solutions that are read together, at most."""
    runs: Count = 4
    """generative: analyses that are sampled of each step; its score is their mean."""
    analysis_tokens: Positive = 1024
    """generative: tokens of an analysis, at most, its Python check included."""
    temperature: Temperature = 0.6
    """generative: sampling temperature of the analyses."""
    run_code: bool = False
    """generative: run the Python checks, each in a process of its own that may open no file and no
    connection (Linux on x86-64 or ARM64). false: the model judges without their output."""
    code_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """generative: seconds that a check may run."""
    code_memory_mb: Annotated[int, Field(ge=64, le=16384)] = 512
    """generative: MiB of memory that a check may use."""
