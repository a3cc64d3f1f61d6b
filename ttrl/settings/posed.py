"""The section [posed]: questions that the policy poses itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Count, Section, Share, Temperature

PROMPT = (
    "Write one new mathematics question that has a single short answer, unlike the ones below, "
    "and hard enough that you would not always get it right. Write the question, and nothing "
    "else, between <question> and </question>.\n\n{examples}"
)
VARIANT_PROMPT = (
    "Here is a mathematics question:\n\n{question}\n\nWrite {variant} of it, with a single short "
    "answer. Write the question, and nothing else, between <question> and </question>."
)


class PosedSettings(Section):
    """Questions that the policy poses itself, with ``data.source = "self_posed"``."""

    form: str = "block"
    """What is read from a proposal as its question. block: what stands between <question> and
    </question>. addition: a sum, "What is 12 + 34?" or worked column by column, which a checker can
    add. FILE.py:CLASS for your own."""
    prompt: str | None = None
    """What the proposer is asked; in the place of {examples} stand earlier questions, one a
    line. None: a prompt of ours, for ``form`` = "block"."""
    variant_prompt: str | None = None
    """What it is asked with ``variants``: {question} is an earlier question, and {variant} "an
    easier variant" if the solver agreed too little on it, "a harder variant" if too much, else
    "another variant". None: ours."""
    variants: bool = False
    """Ask for variants of earlier questions, given ones among them, instead of new ones."""
    examples: Annotated[int, Field(ge=0, le=64)] = 2
    """Earlier questions that a prompt shows, drawn from the buffer."""
    prompts: Count = 16
    """Prompts to the proposer in a step."""
    proposals: Count = 4
    """Replies to each of them."""
    temperature: Temperature = 1.0
    """Temperature of the proposals."""
    repeats: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Questions of a step that are asked again, or given ones that were not asked: drawn from those
    of the buffer that are within the band. More of them are, where too few new ones were posed."""
    lowest_share: Share = 0.3
    """A question is trained on if at least this share of the solver's answers agree with the label
    ..."""
    highest_share: Share = 0.8
    """... and at most this one."""
    reward: Literal["absolute_zero", "r_zero", "sqlm"] = "absolute_zero"
    """What a question earns its proposer, by the share s of the solver's answers that agree with
    the label. absolute_zero: 1 - s, and 0 if s is 0. r_zero: min(s, 1 - s). sqlm: 1 if some agree
    and some do not."""
    invalid_reward: Annotated[float, Field(ge=-10, le=0)] = -1.0
    """What a proposal earns from which no question can be read, or that cannot be asked."""
    duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Two questions are near-duplicates if they share this much of their words (Jaccard index).
    One of them is asked, and none that is one of a question in the buffer."""
    duplicate_penalty: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Times the share of the step's proposals that are its near-duplicates, off the reward of
    each."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the proposals in the loss; 0: only the solver is trained."""
    buffer: Count = 1024
    """Questions that are remembered; the oldest posed ones go first."""

    @property
    def new_prompt(self) -> str:
        """What the proposer is asked for a new question."""
        return PROMPT if self.prompt is None else self.prompt

    @property
    def prompt_of_variants(self) -> str:
        """What it is asked for a variant."""
        return VARIANT_PROMPT if self.variant_prompt is None else self.variant_prompt
